"""The two stories, a query (`exchange`) and a change (`change`), over the Protocols in `contracts`."""
