"""OpenAI's protocol: bodies to engine requests, engine results to answers and chunks."""
