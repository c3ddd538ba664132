"""The foldin.toml of a new state folder."""

import json

from foldind.config import FORMAT, MergeSettings


def configuration_text(base_digest: str, merge: MergeSettings) -> str:
    """Return the foldin.toml of a new state folder."""
    options = "".join(f"{name} = {json.dumps(value)}\n" for name, value in merge.hyper_parameters.items())
    return f"""\
# Made by `foldind init`.
format = {FORMAT}
base_digest = {json.dumps(base_digest)}  # SHA-256 over the digests of the base's files

[merge]  # fixed: what decides the bytes of a merge
rule = {json.dumps(merge.rule)}
{options}max_rank = {merge.max_rank}  # of what only adapters changed, which is held as factors; 0: no limit
summed = {json.dumps(list(merge.summed))}  # 2-D tensors of these names are no linear layers
backend = {json.dumps(merge.backend)}  # whose linear algebra: torch's or numpy's; the faster one here
threads = {merge.threads}  # per matrix product; with one, every processor has a tensor of its own

[serve]  # may be changed; environment variables FOLDIN_<NAME> and flags of `foldind serve` go before it
# grpc = "127.0.0.1:7070"
# http = "127.0.0.1:7072"  # a status page, metrics, health, and the model for clients of the Hub; "" for none
# model_id = "foldin/merged"  # what the model is called there
# http_token = ""  # that those clients have to bring as HF_TOKEN; "" for none. FOLDIN_HTTP_TOKEN shows it to fewer
# ignore = ["classifier.*"]  # tensors of submissions that the base lacks and that are left out without complaint
# allowed_roots = ["/data/checkpoints"]  # folders that SubmitPath may read
# inbox = "/data/inbox"  # folder that is watched: checkpoints that are dropped into it are handed in
# inbox_settle = 2  # seconds that a drop must have been unchanged
# inbox_stale = 600  # seconds without a change after which an incomplete drop is refused
# inbox_poll = 10  # seconds between looks where no event calls for one
# inbox_vocab = "same"  # or "common": of drops with another vocabulary, fold the rows that the base has too
# publication = ""  # how the state becomes the merged model; `foldind rules` lists them. Empty: as the rule does
# publish = ["model"]  # what a version is published as: a whole model, a PEFT "adapter" of the merged update, or both
# adapter_rank = 64  # highest rank of the adapter; 0: as high as the update needs
# gate = ""  # shell command that every new version has to pass before `gate_alias` names it
# gate_alias = "stable"
# gate_timeout = 3600  # seconds that it may take
# keep_snapshots = 10  # besides those that an alias names
# keep_bases = true  # between merges, compute what the next one needs; takes up to twice the state's disk space
# memory_budget = "2GiB"  # resident memory of the worker within which it does as much at once as there are processors
# lease = 3600  # seconds that a superseded snapshot stays readable at the least
# max_attempts = 3  # worker deaths after which a submission is quarantined
# shutdown_grace = 20  # seconds that a running merge gets to finish
# upload_expiry = 604800  # seconds without a byte after which an upload is withdrawn
# retry_disk_every = 5  # seconds between looks at a disk that was full
# log_level = "info"
# log_format = "console"  # or "json", one object a line
"""
