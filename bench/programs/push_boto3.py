"""boto3's transfer manager: push_boto3.py BUCKET PREFIX DIRECTORY"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig

bucket, prefix, directory = sys.argv[1:]
s3 = boto3.client("s3")
config = TransferConfig(preferred_transfer_client="classic", max_concurrency=10, multipart_chunksize=16 << 20)
paths = sorted(Path(directory).iterdir())
with ThreadPoolExecutor(4) as pool:
    for _ in pool.map(lambda path: s3.upload_file(str(path), bucket, f"{prefix}/{path.name}", Config=config), paths):
        pass
