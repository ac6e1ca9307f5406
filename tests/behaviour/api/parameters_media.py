"""The table of parameters: audio, embeddings and images."""

from collections.abc import Mapping

from tests.behaviour.api.row import TEXT, Group, P

SPEECH = Group(
    {"endpoint": "speech", "model": "tts-1", "input": "{{ text }}", "voice": "alloy"},
    "/audio/speech",
    "CreateSpeechRequest",
    (
        P("4.3", "model", "model: tts-1-hd", "model", "tts-1-hd"),
        P("4.3", "input", 'input: "{{ text }}"', "input", TEXT),
        P("4.3", "voice", "voice: nova", "voice", "nova"),
        P("4.3", "response_format", "response_format: flac", "response_format", "flac"),
        P("4.3", "speed: slowest", "speed: 0.25", "speed", 0.25),
        P("4.3", "speed: fastest", "speed: 4.0", "speed", 4.0),
        *(P("4.4", voice, f"voice: {voice}", "voice", voice)
          for voice in ("alloy", "echo", "fable", "onyx", "nova", "shimmer")),
        *(P("4.5", form, f"response_format: {form}", "response_format", form)
          for form in ("mp3", "opus", "aac", "flac", "wav", "pcm")),
        P("OpenAPI", "instructions", "model: gpt-4o-mini-tts\nparams: {instructions: Slowly.}", "instructions",
          "Slowly."),
        P("OpenAPI", "stream_format", "model: gpt-4o-mini-tts\nparams: {stream_format: sse}", "stream_format", "sse"),
        P("OpenAPI", "voice: of one's own", "voice: {id: v1}", "voice", {"id": "v1"}),
    ),
)  # fmt: skip

TRANSCRIPTION = Group(
    {"endpoint": "transcription", "model": "whisper-1", "file": "mp3"},
    "/audio/transcriptions",
    "CreateTranscriptionRequest",
    (
        P("5.3", "file", "file: mp3", "file", "mp3"),
        P("5.3", "model", "model: gpt-4o-transcribe", "model", "gpt-4o-transcribe"),
        P("5.3", "language", "language: zh", "language", "zh"),
        P("5.3", "prompt", 'prompt: "{{ text }}"', "prompt", TEXT),
        P("5.3", "response_format", "response_format: text", "response_format", "text"),
        P("5.3", "temperature", "params: {temperature: 0.2}", "temperature", "0.2"),
        *(P("5.4", kind, f"file: {kind}", "file", kind)
          for kind in ("mp3", "mp4", "mpeg", "mpga", "m4a", "wav", "webm", "flac", "ogg")),
        *(P("5.5", form, f"response_format: {form}", "response_format", form)
          for form in ("json", "text", "srt", "verbose_json", "vtt", "diarized_json")),
        P("OpenAPI", "chunking_strategy", "params: {chunking_strategy: auto}", "chunking_strategy", "auto"),
        P("OpenAPI", "chunking_strategy: an object", "params: {chunking_strategy: {type: server_vad, threshold: 0.5}}",
          "chunking_strategy", {"type": "server_vad", "threshold": "0.5"}),
        P("OpenAPI", "include", "params: {include: [logprobs]}", "include", ["logprobs"]),
        P("OpenAPI", "keywords", "params: {keywords: [Kant, 你好]}", "keywords", ["Kant", "你好"]),
        P("OpenAPI", "known_speaker_names", "params: {known_speaker_names: [ann, bob]}", "known_speaker_names",
          ["ann", "bob"]),
        P("OpenAPI", "known_speaker_references", 'params: {known_speaker_references: ["data:audio/wav;base64,UklG"]}',
          "known_speaker_references", ["data:audio/wav;base64,UklG"]),
        P("OpenAPI", "languages", "params: {languages: [de, en]}", "languages", ["de", "en"]),
        P("OpenAPI", "stream", "params: {stream: true}", "stream", "true"),
        P("OpenAPI", "timestamp_granularities",
          "response_format: verbose_json\nparams: {timestamp_granularities: [word, segment]}",
          "timestamp_granularities", ["word", "segment"]),
    ),
    frozenset({"file"}),
)  # fmt: skip

TRANSLATION = Group(
    {"endpoint": "translation", "model": "whisper-1", "file": "mp3"},
    "/audio/translations",
    "CreateTranslationRequest",
    (
        P("6.3", "file", "file: wav", "file", "wav"),
        P("6.3", "model", "model: whisper-1", "model", "whisper-1"),
        P("6.3", "prompt", 'prompt: "{{ text }}"', "prompt", TEXT),
        P("6.3", "temperature", "params: {temperature: 1}", "temperature", "1"),
        *(P("6.3", f"response_format: {form}", f"response_format: {form}", "response_format", form)
          for form in ("json", "text", "srt", "verbose_json", "vtt")),
    ),
    frozenset({"file"}),
)  # fmt: skip

EMBEDDINGS = Group(
    {"endpoint": "embeddings", "model": "text-embedding-3-small", "input": "{{ text }}"},
    "/embeddings",
    "CreateEmbeddingRequest",
    (
        P("7.3", "input", 'input: "{{ text }}"', "input", [TEXT]),
        P("7.3", "model", "model: text-embedding-3-large", "model", "text-embedding-3-large"),
        P("7.3", "encoding_format", "params: {encoding_format: float}", "encoding_format", "float"),
        P("7.3", "encoding_format: the default", "{}", "encoding_format", "base64"),
        P("7.3", "dimensions", "dimensions: 8", "dimensions", 8),
        P("7.3", "dimensions: among the params", "params: {dimensions: 8}", "dimensions", 8),
        *(P("7.4", model, f"model: {model}", "model", model)
          for model in ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")),
        P("OpenAPI", "user", "params: {user: u-1}", "user", "u-1"),
    ),
)  # fmt: skip

PICTURE_PARAMS = (
    P("OpenAPI", "background", "params: {background: opaque}", "background", "opaque"),
    P("OpenAPI", "output_format", "params: {output_format: webp}", "output_format", "webp"),
    P("OpenAPI", "output_compression", "params: {output_compression: 50}", "output_compression", 50),
    P("OpenAPI", "partial_images", "params: {stream: true, partial_images: 2}", "partial_images", 2),
    P("OpenAPI", "stream", "params: {stream: true}", "stream", True),
)
"""Parameters of gpt-image models."""


def gpt_image(rows: tuple[P, ...]) -> tuple[P, ...]:
    """The parameters with a model that accepts them."""
    return tuple(P(row.section, row.name, f"model: gpt-image-1\n{row.says}", row.place, row.sent) for row in rows)


def in_a_form(rows: tuple[P, ...]) -> tuple[P, ...]:
    """The same parameters in a form."""
    texts = {True: "true", 2: "2", 50: "50"}
    return tuple(P(row.section, row.name, row.says, row.place, texts.get(row.sent, row.sent)) for row in rows)


IMAGE_GENERATION = Group(
    {"endpoint": "image_generation", "model": "dall-e-3", "prompt": "{{ text }}"},
    "/images/generations",
    "CreateImageRequest",
    (
        P("8.3", "prompt", 'prompt: "{{ text }}"', "prompt", TEXT),
        P("8.3", "model", "model: dall-e-2", "model", "dall-e-2"),
        P("8.3", "n", "model: dall-e-2\nn: 10", "n", 10),
        P("8.3", "quality: standard", "quality: standard", "quality", "standard"),
        P("8.3", "quality: hd", "quality: hd", "quality", "hd"),
        P("8.3", "size", "size: 1792x1024", "size", "1792x1024"),
        P("8.3", "style: vivid", "style: vivid", "style", "vivid"),
        P("8.3", "style: natural", "style: natural", "style", "natural"),
        *(P("8.4.1", size, f"model: dall-e-2\nsize: {size}", "size", size)
          for size in ("256x256", "512x512", "1024x1024")),
        *(P("8.4.2", size, f"size: {size}", "size", size) for size in ("1024x1024", "1792x1024", "1024x1792")),
        P("OpenAPI", "response_format", "params: {response_format: url}", "response_format", "url"),
        P("OpenAPI", "response_format: the default", "{}", "response_format", "b64_json"),
        P("OpenAPI", "user", "params: {user: u-1}", "user", "u-1"),
        *gpt_image(PICTURE_PARAMS),
        P("OpenAPI", "moderation", "model: gpt-image-1\nparams: {moderation: low}", "moderation", "low"),
    ),
)  # fmt: skip

IMAGE_EDIT = Group(
    {"endpoint": "image_edit", "model": "gpt-image-1", "image": "png", "prompt": "{{ text }}"},
    "/images/edits",
    "CreateImageEditRequest",
    (
        P("9.3", "image", "image: jpg", "image", "jpg"),
        P("9.3", "image: several", "image: [png, webp]", "image", ["png", "webp"]),
        P("9.3", "mask", "mask: mask", "mask", "mask"),
        P("9.3", "prompt", 'prompt: "{{ text }}"', "prompt", TEXT),
        P("9.3", "model", "model: dall-e-2", "model", "dall-e-2"),
        P("OpenAPI", "n", "n: 2", "n", "2"),
        P("OpenAPI", "size", "size: 1024x1024", "size", "1024x1024"),
        P("OpenAPI", "quality", "params: {quality: low}", "quality", "low"),
        P("OpenAPI", "response_format", "model: dall-e-2\nparams: {response_format: url}", "response_format", "url"),
        P("OpenAPI", "user", "params: {user: u-1}", "user", "u-1"),
        P("OpenAPI", "input_fidelity", "params: {input_fidelity: high}", "input_fidelity", "high"),
        *in_a_form(PICTURE_PARAMS),
    ),
    frozenset({"image", "mask"}),
)

IMAGE_VARIATION = Group(
    {"endpoint": "image_variation", "model": "dall-e-2", "image": "png"},
    "/images/variations",
    "CreateImageVariationRequest",
    (
        P("10.3", "image", "image: photo", "image", "png"),
        P("10.3", "model", "model: dall-e-2", "model", "dall-e-2"),
        P("10.3", "n", "n: 10", "n", "10"),
        P("OpenAPI", "size", "size: 256x256", "size", "256x256"),
        P("OpenAPI", "response_format", "params: {response_format: url}", "response_format", "url"),
        P("OpenAPI", "response_format: the default", "{}", "response_format", "b64_json"),
        P("OpenAPI", "user", "params: {user: u-1}", "user", "u-1"),
    ),
    frozenset({"image"}),
)

MEDIA_GROUPS: Mapping[str, Group] = {
    "speech": SPEECH,
    "transcription": TRANSCRIPTION,
    "translation": TRANSLATION,
    "embeddings": EMBEDDINGS,
    "image_generation": IMAGE_GENERATION,
    "image_edit": IMAGE_EDIT,
    "image_variation": IMAGE_VARIATION,
}
