"""boto3's transfer manager: push_boto3.py BUCKET PREFIX DIRECTORY classic|crt"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig

bucket, prefix, directory, client = sys.argv[1:]
s3 = boto3.client("s3")
config = TransferConfig(preferred_transfer_client=client, max_concurrency=10, multipart_chunksize=16 << 20)
paths = sorted(Path(directory).iterdir())
with ThreadPoolExecutor(4 if client == "classic" else 1) as pool:  # CRT's client is one for the whole process
    for _ in pool.map(lambda path: s3.upload_file(str(path), bucket, f"{prefix}/{path.name}", Config=config), paths):
        pass
