"""LLaMA-Factory's directories and files: what it exported, whether that can be served, and how it came to be.

checkpoint    a directory -> which files belong to the model
preflight     whether an engine could serve them (docs/preflight.md)
weights       headers of safetensors files
generated     what publish writes beside a merged model, for stock MLflow clients
lineage       what training left behind about how the model was made
modelcard     the Trainer's README.md
datasets      what dataset_info.json says, and digests of the files
revision      the training repository's commit
llamafactory  runs `llamafactory-cli export`
documents     JSON and YAML files that somebody else wrote
"""
