"""The verbs, one function each, straight down.

publish   a directory becomes a version
pull      a version becomes a verified directory on this node
promote   aliases move: promote, roll_back, archive
verify    the ledger's chain, the manifests, and every byte if asked
catalog   what is there: models, one version, its history, its URL
links     the ledger as symbolic links in a directory, for people and a plain vllm serve
caching   what this node keeps: listing, removing, verifying, pinning
serve     a version becomes a running vLLM
"""
