"""The sweep over all families of transformers: tiny configurations, the judgement of one family, the table."""
