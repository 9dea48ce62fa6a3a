"""huggingface_hub's snapshot download, from the hub at HF_ENDPOINT: pull_hub.py REPOSITORY DIRECTORY"""

import sys

from huggingface_hub import snapshot_download

snapshot_download(sys.argv[1], local_dir=sys.argv[2], max_workers=8)
