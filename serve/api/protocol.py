"""What a request may say: typed, bounded, strict; what is wrong with it is said in one sentence."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
)

from serve.api.body import BadRequest, complaint, describe_value, measure_value

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_STOPS = 16
MAX_STOP = 1024
MAX_ADAPTERS = 64
MAX_BIASES = 4096
MAX_GRAMMAR = 1 << 16
"""Characters of a grammar."""
MAX_SCHEMA = 1 << 17
"""Characters of a schema, its punctuation roughly counted."""
MAX_SWITCHES = 1 << 16
"""Characters of what is given to a chat template beside the messages."""
RESERVED = (
    "messages",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
    "self",
)
"""What a chat template is given by the server alone."""
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _checked_content(value: Any) -> Any:
    """A message's content: a text, or parts that are texts."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise complaint("must be a text or a list of parts, and is {}", describe_value(value))
    if len(value) > MAX_PARTS:
        raise complaint("has {} parts, and a message may have {}", len(value), MAX_PARTS)
    for place, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            shown = f"of type {kind[:40]!r}" if isinstance(kind, str) else describe_value(part)
            raise complaint(
                'has as part {} something {}: this server reads text only, {"type": "text", "text": ...}',
                place,
                shown,
            )
        if not isinstance(part.get("text"), str):
            raise complaint(
                "has as part {} a text that is {}", place, describe_value(part.get("text"))
            )
    return value


def _checked_prompt(value: Any) -> Any:
    """A prompt: a text, texts, token numbers, or lists of token numbers."""
    if isinstance(value, str):
        return value
    what = "must be a text, a list of texts, token numbers, or a list of lists of token numbers"
    if not isinstance(value, list):
        raise complaint(what + ", and is {}", describe_value(value))
    if not value:
        raise complaint("is empty: send a text or token numbers")
    kind = type(value[0])
    if kind not in (str, int, list):
        raise complaint(what + ", and holds {}", describe_value(value[0]))
    for place, one in enumerate(value):
        if type(one) is not kind:
            raise complaint(
                what + ": item 0 is {}, item {} is {}",
                describe_value(value[0]),
                place,
                describe_value(one),
            )
        if kind is list and (wrong := next((t for t in one if type(t) is not int), one)) is not one:
            raise complaint(what + ": list {} holds {}", place, describe_value(wrong))
    return value


def _checked_stops(value: Any) -> Any:
    given = [value] if isinstance(value, str) else [] if value is None else value
    well = isinstance(given, list) and len(given) <= MAX_STOPS
    if not well or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP for s in given):
        raise complaint("takes at most {} strings of 1 to {} characters", MAX_STOPS, MAX_STOP)
    return given


def _checked_biases(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise complaint("names {} tokens, and may name {}", len(value), MAX_BIASES)
    return value


def _checked_switches(value: Any) -> Any:
    if isinstance(value, dict):
        if measure_value(value, MAX_SWITCHES) > MAX_SWITCHES:
            raise complaint("is longer than {} characters", MAX_SWITCHES)
        if (
            wrong := next((k for k in value if k in RESERVED or not k.isidentifier()), None)
        ) is not None:
            raise complaint("can't set {}", repr(wrong[:40]))
    return value


def _checked_schema(value: Any) -> Any:
    if not isinstance(value, dict | bool):
        raise complaint("must be an object, true or false, and is {}", describe_value(value))
    return value


Content = Annotated[str | list["TextPart"] | None, BeforeValidator(_checked_content)]
Prompt = Annotated[str | list[str] | list[int] | list[list[int]], PlainValidator(_checked_prompt)]
Stops = Annotated[list[str], PlainValidator(_checked_stops)]
Biases = Annotated[dict[str, Finite] | None, BeforeValidator(_checked_biases)]
Switches = Annotated[dict[str, Any] | None, BeforeValidator(_checked_switches)]
Schema = Annotated[dict[str, Any] | bool, BeforeValidator(_checked_schema)]


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
    content: Content = None
    name: str | None = None

    def to_template(self) -> dict[str, Any]:
        """As a chat template wants it."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content or ""}


Messages = Annotated[list[ChatMessage], FailFast(), Field(min_length=1, max_length=MAX_MESSAGES)]


class StreamOptions(RequestBody):
    """What a stream carries beside the text."""

    include_usage: bool = False


class JsonSchema(RequestBody):
    """OpenAI's wrapping of a schema."""

    name: str | None = None
    strict: bool | None = None
    schema_: Schema = Field(default_factory=dict, alias="schema")


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
    max_tokens: int | None = None
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
    stop: Stops = Field(default_factory=list)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=8)
    logit_bias: Biases = None
    response_format: ResponseFormat | None = None
    grammar: str | None = Field(None, max_length=MAX_GRAMMAR)
    lora: list[LoraChoice] | None = Field(None, max_length=MAX_ADAPTERS)
    reasoning_format: str | None = None
    ignore_eos: bool = False

    def num_logprobs(self) -> int | None:
        """How many likely tokens to report; None = no logprobs."""
        raise NotImplementedError

    def length_limit(self) -> tuple[int | None, list[str]]:
        """Tokens that the reply may have (None: as many as fit), and what to say about that.

        -1 is llama-server's and LM Studio's word for no limit.
        """
        asked = self.max_tokens
        if asked is None or asked < 0:
            return None, []
        if asked == 0:
            return 1, ["max_tokens 0 is taken as 1: a reply has at least one token."]
        return asked, []

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

    def requested_grammar(self) -> dict[str, Any] | None:
        """The grammar that the reply must keep to, as `serve.workbench.grammar` takes it."""
        form = self.response_format
        if self.grammar is not None and form is not None and form.type != "text":
            raise BadRequest("Give either grammar or response_format, not both.", param="grammar")
        if self.grammar is not None:
            return {"gbnf": self.grammar}
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return {"schema": _bounded(form.schema_ or {"type": "object"})}
        if form.json_schema is None:
            raise BadRequest(
                'response_format of type "json_schema" needs json_schema: {"schema": {...}}.',
                param="response_format",
            )
        schema = _bounded(form.json_schema.schema_)
        return {"schema": schema, "strict": form.json_schema.strict or False}


class ChatCompletionRequest(CommonRequest):
    """The body of /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    chat_template_kwargs: Switches = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None

    def length_limit(self) -> tuple[int | None, list[str]]:
        """As `CommonRequest.length_limit`, under either name."""
        if self.max_completion_tokens is not None:
            return self.model_copy(
                update={"max_tokens": self.max_completion_tokens, "max_completion_tokens": None}
            ).length_limit()
        return super().length_limit()

    def num_logprobs(self) -> int | None:
        """How many likely tokens to report; None = no logprobs."""
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(CommonRequest):
    """The body of /v1/completions."""

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def num_logprobs(self) -> int | None:
        """How many likely tokens to report; None = no logprobs."""
        return self.logprobs

    def num_prompts(self) -> int:
        """How many prompts there are."""
        many = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return len(self.prompt) if many else 1

    def prompts(self) -> list[str | list[int]]:
        """Each prompt: a text, or token numbers."""
        given = self.prompt
        if isinstance(given, str) or isinstance(given[0], int):
            return [given]
        return list(given)


class TokenizeRequest(RequestBody):
    """The body of /tokenize."""

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(RequestBody):
    """The body of /detokenize."""

    tokens: Annotated[list[int], FailFast()]


class ApplyTemplateRequest(RequestBody):
    """The body of /apply-template."""

    messages: Messages
    chat_template_kwargs: Switches = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


def _bounded(schema: Any) -> Any:
    if measure_value(schema, MAX_SCHEMA) > MAX_SCHEMA:
        raise BadRequest(
            f"The JSON schema is longer than {MAX_SCHEMA:,} characters: send a smaller one.",
            param="response_format",
        )
    return schema


def _token(name: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise BadRequest(
            f"logit_bias takes token numbers as keys, not {name[:40]!r}.", param="logit_bias"
        ) from None
