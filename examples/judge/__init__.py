"""A judge over HTTP as a reward: a language model behind an OpenAI-compatible server gives marks."""
