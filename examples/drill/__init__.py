"""The fault drill: kill runs at random moments, resume them, and compare them with uninterrupted runs."""
