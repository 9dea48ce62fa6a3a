"""The verbs, one function each, straight down.

publish   a directory becomes a version
adopt     what a team already has, in a folder or a bucket, becomes a version
watch     exports become versions as they appear in a folder
repair    damage in the store is mended from the original
pull      a version becomes a verified directory on this node; fetch gets what the node lacks of it
promote   aliases move: promote, roll_back, archive
verify    the ledger's chain, the manifests, and every byte if asked
catalog   what is there: models, one version, its history, its URL
mirroring the ledger as an MLflow server shows it, and what is done in MLflow alone
runs      the training run and the tags of a version in MLflow
foreign   versions in MLflow that Packtrain did not publish
waking    those on this machine who wait for news of a model
policy    what moving aliases demands
links     the ledger as symbolic links in a directory, for people and a plain vllm serve
caching   what this node keeps: listing, removing, verifying, pinning
serve     a version becomes a running vLLM
"""
