"""boto3's transfer manager: pull_boto3.py BUCKET PREFIX DIRECTORY classic|crt"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig

bucket, prefix, out, client = sys.argv[1:]
Path(out).mkdir(parents=True)
s3 = boto3.client("s3")
config = TransferConfig(preferred_transfer_client=client, max_concurrency=10, multipart_chunksize=16 << 20)
keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]]
with ThreadPoolExecutor(4 if client == "classic" else 1) as pool:  # CRT's client is one for the whole process
    for _ in pool.map(lambda key: s3.download_file(bucket, key, f"{out}/{Path(key).name}", Config=config), keys):
        pass
