import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GateVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GATE_VERDICT_UNSPECIFIED: _ClassVar[GateVerdict]
    GATE_VERDICT_WAITING: _ClassVar[GateVerdict]
    GATE_VERDICT_RUNNING: _ClassVar[GateVerdict]
    GATE_VERDICT_PASSED: _ClassVar[GateVerdict]
    GATE_VERDICT_FAILED: _ClassVar[GateVerdict]
    GATE_VERDICT_SKIPPED: _ClassVar[GateVerdict]

class SnapshotState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SNAPSHOT_STATE_UNSPECIFIED: _ClassVar[SnapshotState]
    SNAPSHOT_STATE_PUBLISHED: _ClassVar[SnapshotState]
    SNAPSHOT_STATE_WITHDRAWN: _ClassVar[SnapshotState]
    SNAPSHOT_STATE_PRUNED: _ClassVar[SnapshotState]
GATE_VERDICT_UNSPECIFIED: GateVerdict
GATE_VERDICT_WAITING: GateVerdict
GATE_VERDICT_RUNNING: GateVerdict
GATE_VERDICT_PASSED: GateVerdict
GATE_VERDICT_FAILED: GateVerdict
GATE_VERDICT_SKIPPED: GateVerdict
SNAPSHOT_STATE_UNSPECIFIED: SnapshotState
SNAPSHOT_STATE_PUBLISHED: SnapshotState
SNAPSHOT_STATE_WITHDRAWN: SnapshotState
SNAPSHOT_STATE_PRUNED: SnapshotState

class Snapshot(_message.Message):
    __slots__ = ("version", "parent", "created_at", "aliases", "submission_id", "submission_name", "submissions", "accumulated_norm", "mean_task_vector_norm", "task_vector_norm", "rule", "files", "state", "merge_seconds", "publication", "variant", "gate", "took_out", "took_out_name")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    SUBMISSION_ID_FIELD_NUMBER: _ClassVar[int]
    SUBMISSION_NAME_FIELD_NUMBER: _ClassVar[int]
    SUBMISSIONS_FIELD_NUMBER: _ClassVar[int]
    LAMBDA_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATED_NORM_FIELD_NUMBER: _ClassVar[int]
    MEAN_TASK_VECTOR_NORM_FIELD_NUMBER: _ClassVar[int]
    TASK_VECTOR_NORM_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MERGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PUBLICATION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    TOOK_OUT_FIELD_NUMBER: _ClassVar[int]
    TOOK_OUT_NAME_FIELD_NUMBER: _ClassVar[int]
    version: int
    parent: int
    created_at: _timestamp_pb2.Timestamp
    aliases: _containers.RepeatedScalarFieldContainer[str]
    submission_id: str
    submission_name: str
    submissions: int
    accumulated_norm: float
    mean_task_vector_norm: float
    task_vector_norm: float
    rule: str
    files: _containers.RepeatedCompositeFieldContainer[SnapshotFile]
    state: SnapshotState
    merge_seconds: float
    publication: str
    variant: bool
    gate: Gate
    took_out: str
    took_out_name: str
    def __init__(self, version: _Optional[int] = ..., parent: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., aliases: _Optional[_Iterable[str]] = ..., submission_id: _Optional[str] = ..., submission_name: _Optional[str] = ..., submissions: _Optional[int] = ..., accumulated_norm: _Optional[float] = ..., mean_task_vector_norm: _Optional[float] = ..., task_vector_norm: _Optional[float] = ..., rule: _Optional[str] = ..., files: _Optional[_Iterable[_Union[SnapshotFile, _Mapping]]] = ..., state: _Optional[_Union[SnapshotState, str]] = ..., merge_seconds: _Optional[float] = ..., publication: _Optional[str] = ..., variant: bool = ..., gate: _Optional[_Union[Gate, _Mapping]] = ..., took_out: _Optional[str] = ..., took_out_name: _Optional[str] = ..., **kwargs) -> None: ...

class Gate(_message.Message):
    __slots__ = ("verdict", "reason", "scores", "judged_at", "seconds")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    JUDGED_AT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    verdict: GateVerdict
    reason: str
    scores: _containers.ScalarMap[str, float]
    judged_at: _timestamp_pb2.Timestamp
    seconds: float
    def __init__(self, verdict: _Optional[_Union[GateVerdict, str]] = ..., reason: _Optional[str] = ..., scores: _Optional[_Mapping[str, float]] = ..., judged_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., seconds: _Optional[float] = ...) -> None: ...

class SnapshotFile(_message.Message):
    __slots__ = ("name", "size", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class GetSnapshotRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class ListSnapshotsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots", "next_page_token")
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[Snapshot]
    next_page_token: str
    def __init__(self, snapshots: _Optional[_Iterable[_Union[Snapshot, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchSnapshotsRequest(_message.Message):
    __slots__ = ("alias",)
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    alias: str
    def __init__(self, alias: _Optional[str] = ...) -> None: ...

class ReadFileRequest(_message.Message):
    __slots__ = ("version", "file", "offset")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    version: int
    file: str
    offset: int
    def __init__(self, version: _Optional[int] = ..., file: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class ReadFileResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("alias", "version")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    alias: str
    version: int
    def __init__(self, alias: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class SetAliasResponse(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: Snapshot
    def __init__(self, snapshot: _Optional[_Union[Snapshot, _Mapping]] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("publication", "alias")
    PUBLICATION_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    publication: str
    alias: str
    def __init__(self, publication: _Optional[str] = ..., alias: _Optional[str] = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("stage", "done", "total", "tensor", "snapshot")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    stage: str
    done: int
    total: int
    tensor: str
    snapshot: Snapshot
    def __init__(self, stage: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., tensor: _Optional[str] = ..., snapshot: _Optional[_Union[Snapshot, _Mapping]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("snapshot", "undone")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    UNDONE_FIELD_NUMBER: _ClassVar[int]
    snapshot: Snapshot
    undone: int
    def __init__(self, snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., undone: _Optional[int] = ...) -> None: ...
