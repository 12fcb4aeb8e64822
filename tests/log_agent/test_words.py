"""The agent's words on the wire, frozen: what was sent once decodes for ever, and new fields trouble
nobody.
"""

from typing import Any

import msgspec
import pytest

from shared import logs
from shared.errors import Malformed

SAMPLES: list[tuple[type[Any], bytes]] = [
    (logs.SourcesRequest, b'{"after":"docker:web"}'),
    (
        logs.SourcesReply,
        b'{"host":"tower","engine":{"name":"Engine","version":"20.10.24","api_version":"1.41","containers":1},'
        b'"engine_error":null,"sources":[{"source":"docker:web","kind":"docker","name":"web","allowed":true,'
        b'"image":"app:1","state":"running","size_bytes":null}],"notes":[],"next":null}',
    ),
    (
        logs.ReadRequest,
        b'{"source":"docker:web","cursor":null,"since":"2026-11-21T10:00:00Z","max_lines":200000,"max_bytes":67108864}',
    ),
    (
        logs.LogChunk,
        b'{"n":1,"at":["2026-11-21T09:52:02.315025555Z",null],"stream":["stderr",""],"text":["a","b"],"cut_bytes":3,'
        b'"last":true,"truncated":"lines","older_skipped":true,"until":"2026-11-21T10:00:00.000000Z",'
        b'"cursor":"d0|0123456789ab","notes":["said"]}',
    ),
    (logs.LogChunk, b'{"error":"refused","message":"not on the allow-list","field":"source"}'),
    (logs.LogRefusal, b'{"error":"refused","message":"not on the allow-list","field":"source"}'),
    (logs.ServicesRequest, b'{"after":""}'),
    (
        logs.ServicesReply,
        b'{"host":"tower","engine_error":null,"services":[{"id":"0123","name":"web","image":"app:1","state":"running",'
        b'"health":"healthy","started_at":"2026-11-21T09:00:00Z","restart_count":2,"ports":[{"container_port":80,'
        b'"protocol":"tcp","host_ip":"0.0.0.0","host_port":8080}],"networks":[{"name":"back","id":"ab","driver":"bridge",'
        b'"ip":"172.18.0.2","aliases":["web"]}],"network_mode":"back","mounts":[{"type":"bind","source":"/a",'
        b'"destination":"/b","rw":false}],"compose_project":"shop","compose_service":"web","depends_on":[{"service":"db",'
        b'"condition":"service_healthy"}],"links":[{"container":"db","alias":"d"}],"labels":{"a":"b"}}],"next":"web"}',
    ),
]


@pytest.mark.parametrize(("kind", "sample"), SAMPLES)
def test_a_sample_decodes_and_is_said_the_same_way(kind: type[Any], sample: bytes) -> None:
    assert msgspec.json.encode(msgspec.json.decode(sample, type=kind)) == sample
    newer = b'{"a_field_of_tomorrow":[1],' + sample[1:]
    assert msgspec.json.decode(newer, type=kind) == msgspec.json.decode(sample, type=kind)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (logs.ReadRequest(source=""), "source"),
        (logs.ReadRequest(source="web", max_lines=logs.READ_LINES_MAX + 1), "max_lines"),
        (logs.ReadRequest(source="web", max_bytes=-1), "max_bytes"),
        (logs.ReadRequest(source="web", cursor="x" * 600), "cursor"),
        (logs.ReadRequest(source="web", since="2026-99-99T00:00:00Z"), "since"),
    ],
)
def test_a_request_out_of_bounds_names_its_field(request_: logs.ReadRequest, field: str) -> None:
    with pytest.raises(Malformed) as caught:
        logs.check_read(request_)
    assert caught.value.field == field


def test_a_page_holds_at_least_one_item_and_no_more_than_fit() -> None:
    items = [logs.SourceInfo(source=f"docker:{i}", kind="docker", name="x" * 100, allowed=False) for i in range(9)]
    assert logs.page(items, 1) == items[:1]
    assert 1 < len(logs.page(items, 600)) < 9
    assert logs.page(items) == items
