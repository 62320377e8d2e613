"""What a result says of its making."""

import json

import torch

from pipeline.base.provenance import provenance


def test_secrets_of_the_environment_stay_out(monkeypatch):
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY", "PIPELINE_MIRRORS"):
        monkeypatch.setenv(name, "http://me:hidden@127.0.0.1:9")
    written = json.dumps(provenance(torch.device("cpu"), 1.0))
    assert "hidden" not in written and "127.0.0.1" not in written
