import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmissionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUBMISSION_STATE_UNSPECIFIED: _ClassVar[SubmissionState]
    SUBMISSION_STATE_RECEIVING: _ClassVar[SubmissionState]
    SUBMISSION_STATE_QUEUED: _ClassVar[SubmissionState]
    SUBMISSION_STATE_MERGING: _ClassVar[SubmissionState]
    SUBMISSION_STATE_MERGED: _ClassVar[SubmissionState]
    SUBMISSION_STATE_REJECTED: _ClassVar[SubmissionState]
    SUBMISSION_STATE_QUARANTINED: _ClassVar[SubmissionState]
    SUBMISSION_STATE_WITHDRAWN: _ClassVar[SubmissionState]

class VocabPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VOCAB_POLICY_UNSPECIFIED: _ClassVar[VocabPolicy]
    VOCAB_POLICY_SAME: _ClassVar[VocabPolicy]
    VOCAB_POLICY_COMMON: _ClassVar[VocabPolicy]
SUBMISSION_STATE_UNSPECIFIED: SubmissionState
SUBMISSION_STATE_RECEIVING: SubmissionState
SUBMISSION_STATE_QUEUED: SubmissionState
SUBMISSION_STATE_MERGING: SubmissionState
SUBMISSION_STATE_MERGED: SubmissionState
SUBMISSION_STATE_REJECTED: SubmissionState
SUBMISSION_STATE_QUARANTINED: SubmissionState
SUBMISSION_STATE_WITHDRAWN: SubmissionState
VOCAB_POLICY_UNSPECIFIED: VocabPolicy
VOCAB_POLICY_SAME: VocabPolicy
VOCAB_POLICY_COMMON: VocabPolicy

class FileSpec(_message.Message):
    __slots__ = ("name", "size", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class CreateSubmissionRequest(_message.Message):
    __slots__ = ("files", "name", "labels", "request_id", "partial", "force", "vocab", "take_out")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FILES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_FIELD_NUMBER: _ClassVar[int]
    TAKE_OUT_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[FileSpec]
    name: str
    labels: _containers.ScalarMap[str, str]
    request_id: str
    partial: bool
    force: bool
    vocab: VocabPolicy
    take_out: bool
    def __init__(self, files: _Optional[_Iterable[_Union[FileSpec, _Mapping]]] = ..., name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ..., partial: bool = ..., force: bool = ..., vocab: _Optional[_Union[VocabPolicy, str]] = ..., take_out: bool = ...) -> None: ...

class CreateSubmissionResponse(_message.Message):
    __slots__ = ("submission", "missing", "chunk_size")
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    submission: Submission
    missing: _containers.RepeatedCompositeFieldContainer[MissingChunks]
    chunk_size: int
    def __init__(self, submission: _Optional[_Union[Submission, _Mapping]] = ..., missing: _Optional[_Iterable[_Union[MissingChunks, _Mapping]]] = ..., chunk_size: _Optional[int] = ...) -> None: ...

class MissingChunks(_message.Message):
    __slots__ = ("file", "ranges")
    FILE_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    file: str
    ranges: _containers.RepeatedCompositeFieldContainer[ByteRange]
    def __init__(self, file: _Optional[str] = ..., ranges: _Optional[_Iterable[_Union[ByteRange, _Mapping]]] = ...) -> None: ...

class ByteRange(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class WriteChunkRequest(_message.Message):
    __slots__ = ("submission_id", "file", "offset", "data")
    SUBMISSION_ID_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    submission_id: str
    file: str
    offset: int
    data: bytes
    def __init__(self, submission_id: _Optional[str] = ..., file: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class WriteChunkResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CommitSubmissionRequest(_message.Message):
    __slots__ = ("submission_id", "files")
    SUBMISSION_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    submission_id: str
    files: _containers.RepeatedCompositeFieldContainer[FileSpec]
    def __init__(self, submission_id: _Optional[str] = ..., files: _Optional[_Iterable[_Union[FileSpec, _Mapping]]] = ...) -> None: ...

class CommitSubmissionResponse(_message.Message):
    __slots__ = ("submission",)
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    submission: Submission
    def __init__(self, submission: _Optional[_Union[Submission, _Mapping]] = ...) -> None: ...

class SubmitPathRequest(_message.Message):
    __slots__ = ("path", "name", "labels", "request_id", "partial", "force", "vocab")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PATH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_FIELD_NUMBER: _ClassVar[int]
    path: str
    name: str
    labels: _containers.ScalarMap[str, str]
    request_id: str
    partial: bool
    force: bool
    vocab: VocabPolicy
    def __init__(self, path: _Optional[str] = ..., name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ..., partial: bool = ..., force: bool = ..., vocab: _Optional[_Union[VocabPolicy, str]] = ...) -> None: ...

class SubmitPathResponse(_message.Message):
    __slots__ = ("submission",)
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    submission: Submission
    def __init__(self, submission: _Optional[_Union[Submission, _Mapping]] = ...) -> None: ...

class Submission(_message.Message):
    __slots__ = ("id", "name", "labels", "state", "reason", "version", "files", "partial", "attempts", "created_at", "updated_at", "progress", "content_digest", "history", "vocab", "common_rows", "takes_out", "took_out")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    VOCAB_FIELD_NUMBER: _ClassVar[int]
    COMMON_ROWS_FIELD_NUMBER: _ClassVar[int]
    TAKES_OUT_FIELD_NUMBER: _ClassVar[int]
    TOOK_OUT_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    labels: _containers.ScalarMap[str, str]
    state: SubmissionState
    reason: str
    version: int
    files: _containers.RepeatedCompositeFieldContainer[FileSpec]
    partial: bool
    attempts: int
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    progress: Progress
    content_digest: str
    history: _containers.RepeatedCompositeFieldContainer[SubmissionEvent]
    vocab: VocabPolicy
    common_rows: _containers.RepeatedCompositeFieldContainer[CommonRows]
    takes_out: bool
    took_out: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., state: _Optional[_Union[SubmissionState, str]] = ..., reason: _Optional[str] = ..., version: _Optional[int] = ..., files: _Optional[_Iterable[_Union[FileSpec, _Mapping]]] = ..., partial: bool = ..., attempts: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., content_digest: _Optional[str] = ..., history: _Optional[_Iterable[_Union[SubmissionEvent, _Mapping]]] = ..., vocab: _Optional[_Union[VocabPolicy, str]] = ..., common_rows: _Optional[_Iterable[_Union[CommonRows, _Mapping]]] = ..., takes_out: bool = ..., took_out: _Optional[str] = ...) -> None: ...

class CommonRows(_message.Message):
    __slots__ = ("tensor", "folded", "submission", "base")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    FOLDED_FIELD_NUMBER: _ClassVar[int]
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    tensor: str
    folded: int
    submission: int
    base: int
    def __init__(self, tensor: _Optional[str] = ..., folded: _Optional[int] = ..., submission: _Optional[int] = ..., base: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stage", "done", "total", "tensor")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    stage: str
    done: int
    total: int
    tensor: str
    def __init__(self, stage: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., tensor: _Optional[str] = ...) -> None: ...

class SubmissionEvent(_message.Message):
    __slots__ = ("at", "state", "detail")
    AT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    state: SubmissionState
    detail: str
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[SubmissionState, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class GetSubmissionRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ListSubmissionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "states")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[SubmissionState]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[SubmissionState, str]]] = ...) -> None: ...

class ListSubmissionsResponse(_message.Message):
    __slots__ = ("submissions", "next_page_token")
    SUBMISSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    submissions: _containers.RepeatedCompositeFieldContainer[Submission]
    next_page_token: str
    def __init__(self, submissions: _Optional[_Iterable[_Union[Submission, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchSubmissionRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class RetrySubmissionRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class WithdrawSubmissionRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...
