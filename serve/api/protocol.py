"""What a request may say: typed, bounded, strict; what is wrong with it is said in one sentence."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rig.errors import RigError

MAX_STOPS = 16
MAX_ADAPTERS = 64
Finite = Annotated[float, Field(allow_inf_nan=False)]


class BadRequest(RigError):
    """The request is wrong; `status` says in which way."""

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


class RequestBody(BaseModel):
    """Unknown keys are ignored: every client sends some of its own."""

    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(RequestBody):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(RequestBody):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None

    def to_template(self) -> dict[str, Any]:
        """As a chat template wants it."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content or ""}


class StreamOptions(RequestBody):
    """What a stream carries beside the text."""

    include_usage: bool = False


class JsonSchema(RequestBody):
    """OpenAI's wrapping of a schema."""

    name: str | None = None
    schema_: dict[str, Any] | bool = Field(default_factory=dict, alias="schema")


class ResponseFormat(RequestBody):
    """Free text, any JSON object, or JSON after a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class LoraChoice(RequestBody):
    """An adapter loaded at start (by its place in the list, from 0) and how strongly it counts."""

    id: int
    scale: Finite = 1.0


class CommonRequest(RequestBody):
    """What chat and plain completions have in common."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: Finite | None = Field(None, ge=0, le=100)
    top_p: Finite | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: Finite | None = Field(None, ge=0, le=1)
    typical_p: Finite | None = Field(None, gt=0, le=1)
    repeat_penalty: Finite | None = Field(None, gt=0.01, le=100)
    repeat_last_n: int | None = Field(None, ge=0, le=65536)
    presence_penalty: Finite | None = Field(None, ge=-10, le=10)
    frequency_penalty: Finite | None = Field(None, ge=-10, le=10)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=8)
    logit_bias: dict[str, Finite] | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = None
    lora: list[LoraChoice] | None = Field(None, max_length=MAX_ADAPTERS)
    reasoning_format: str | None = None
    ignore_eos: bool = False

    def sampling_fields(self) -> dict[str, Any]:
        """The fields of `serve.engine.sampling.SamplerParams` that were given."""
        names = (
            "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
            "presence_penalty", "frequency_penalty",
        )  # fmt: skip
        found = {n: value for n in names if (value := getattr(self, n)) is not None}
        if self.seed is not None and self.seed != -1:  # -1 is llama-server's word for "any"
            found["seed"] = self.seed & 0xFFFFFFFF
        if self.logit_bias:
            found["logit_bias"] = [(_token(t), b) for t, b in self.logit_bias.items()]
        return found

    def stop_strings(self) -> list[str]:
        """The stop strings; an empty one is refused."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(given) > MAX_STOPS or any(not stop or len(stop) > 1024 for stop in given):
            raise BadRequest(
                f"stop takes at most {MAX_STOPS} strings of 1 to 1024 characters.", param="stop"
            )
        return given

    def requested_grammar(self) -> dict[str, Any] | None:
        """The grammar that the reply must keep to, as `serve.engine.grammar` takes it."""
        form = self.response_format
        if self.grammar is not None and form is not None and form.type != "text":
            raise BadRequest("Give either grammar or response_format, not both.", param="grammar")
        if self.grammar is not None:
            return {"gbnf": self.grammar}
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return {"schema": form.schema_ or {"type": "object"}}
        if form.json_schema is None:
            raise BadRequest(
                'response_format of type "json_schema" needs json_schema: {"schema": {...}}.',
                param="response_format",
            )
        return {"schema": form.json_schema.schema_}


class ChatCompletionRequest(CommonRequest):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None

    def num_logprobs(self) -> int | None:
        """How many likely tokens to report; None = no logprobs."""
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(CommonRequest):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def num_logprobs(self) -> int | None:
        """How many likely tokens to report; None = no logprobs."""
        return self.logprobs

    def engine_prompts(self) -> list[list[Any]]:
        """Each prompt as the engine takes it: [[text, may hold control tokens]] or token numbers."""
        given = self.prompt
        if isinstance(given, str):
            return [[[given, True]]]
        if not given:
            raise BadRequest("prompt is empty: send a text or token numbers.", param="prompt")
        if isinstance(given[0], int):
            return [list(given)]
        return [[[p, True]] if isinstance(p, str) else list(p) for p in given]


class TokenizeRequest(RequestBody):
    """The body of /tokenize."""

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(RequestBody):
    """The body of /detokenize."""

    tokens: list[int]


class ApplyTemplateRequest(RequestBody):
    """The body of /apply-template."""

    messages: list[ChatMessage] = Field(min_length=1)
    chat_template_kwargs: dict[str, Any] | None = None


F = TypeVar("F", bound=RequestBody)


def parse_body(kind: type[F], body: bytes) -> F:
    """A request's body as a `kind`. Raises BadRequest with a sentence."""
    try:
        found = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None
    except ValueError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise BadRequest("The body must be a JSON object.")
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise BadRequest(f"{where or 'The body'}: {message}.", param=where or None) from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _token(name: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise BadRequest(
            f"logit_bias takes token numbers as keys, not {name[:40]!r}.", param="logit_bias"
        ) from None
