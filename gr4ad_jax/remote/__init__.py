"""Buckets: a run, or a file that is read, whose address begins with s3:// or gs://.

All other rooms read and write local folders. Here lies what carries them to a bucket and back.
"""
