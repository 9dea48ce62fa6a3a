"""The nouns: values and decisions. No I/O, no clock, no threads, no third-party imports.

digest     the SHA-256 of a version's canonical manifest: its identity
canonical  one byte form for each JSON value (RFC 8785, integers only)
safetensors  headers, and where a file is cut into chunks
manifest   the files of a version with their digests and chunks
sourcing   which bytes to ask for: missing chunks, grouped into requests
retention  what leaves a cache when room is needed
amount     bytes, as people write and read them
reference  how people name a version: NAME, NAME@alias, NAME/3, NAME@sha256:...
finding    what preflight has to say about a directory
lineage    where a version came from
ancestry   what it was made from, what that was made from, and so on
tensors    which tensors two versions share, told from manifests and headers
tokenizer  what can be told of a tokenizer from its files
comparison  what changed between two versions
version    one immutable, numbered entry of a registered model
mirror     what a ledger says about the MLflow server that shows it
webhook    who may have sent one of MLflow's webhooks, and what it is about
projection  what is to be done so that MLflow shows it, and what was done there alone
ledger     the hash-chained log of what happened to a registered model, its fold, and the decisions on it
"""
