"""The fault drill: runs are killed at random moments, gone on with, and compared with runs that were left alone."""
