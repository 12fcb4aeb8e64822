"""What the command hands out as an artifact is what the run announced, or nothing."""

from shared.bus import Bus
from shared.subjects import ARTIFACTS_BUCKET, artifact
from tests.stack import Stack


async def test_an_artifact_that_was_changed_in_the_store_is_not_handed_out(remit: Stack, client: Bus) -> None:
    """A worker that was presumed dead may still write; the digest in the step's accepted end says what counts."""
    assert remit.remit("submit", "--task", "gpu_report", "--wait").returncode == 0
    run = 1
    assert remit.remit("artifacts", str(run), "gpu_report.json").returncode == 0
    await client.object_put(ARTIFACTS_BUCKET, artifact(run, "gpu_report.json"), b'{"status": "success"}')
    told = remit.remit("artifacts", str(run), "gpu_report.json")
    assert (told.returncode, told.stdout) == (1, "")
    assert "not what run 1 announced" in told.stderr
