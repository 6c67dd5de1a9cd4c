"""The model that a real Ollama and a real vLLM both serve: tiny, random, the same bytes for the same seed.

Run by the Python of vLLM's environment, which has what it imports: `python real_weights.py FOLDER SEED`. Two
layers, 2.3 million parameters, a byte-level BPE trained on Python's own library. What makes the two servers agree:

- Ollama knows a pre-tokenizer only by the hash of its Split expression, so it is Qwen2's to the letter.
- The usual deviation of 0.02 gives logits so flat that float16 and float32 part at the first token.
- The chat template is written twice, in Jinja for vLLM and in Go's language for Ollama, to the same bytes.
"""

import glob
import json
import struct
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY, HIDDEN, INNER, LAYERS, HEADS, HEAD = 2000, 256, 512, 2, 4, 64
CONTEXT = 2048
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
END = SPECIAL.index("<|im_end|>")
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# In Jinja a newline right after a `%}` is swallowed, hence {{ '\n' }}; tojson needs its separators told.
JINJA = (
    "{%- if tools %}{{ '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{%- endif %}"
    "{{ '# Tools\n\n<tools>' }}"
    "{%- for t in tools %}{{ '\n' }}{{ t | tojson(separators=(',', ':')) }}{%- endfor %}"
    "{{ '\n</tools><|im_end|>\n' }}"
    "{%- elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- elif m.role == 'system' and loop.first %}"
    "{%- else %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{%- for c in m.tool_calls or [] %}{%- if c.function %}{%- set c = c.function %}{%- endif %}"
    '{{ \'\n<tool_call>\n{"name": "\' + c.name + \'", "arguments": \' }}'
    "{{ c.arguments if c.arguments is string else c.arguments | tojson(separators=(',', ':')) }}"
    "{{ '}\n</tool_call>' }}{%- endfor %}"
    "{{ '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
# In Go's language a bare {{ . }} would print a Go struct, hence json. Ollama takes a model for one that calls tools
# if this uses .Tools, and its call tag from what follows `if .ToolCalls`.
GO = (
    "{{- if .Tools }}<|im_start|>system\n{{ if .System }}{{ .System }}\n\n{{ end }}# Tools\n\n"
    "<tools>{{ range .Tools }}\n{{ json . }}{{ end }}\n</tools><|im_end|>\n"
    "{{ else if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    '{{- range .Messages }}{{ if eq .Role "tool" }}'
    "<|im_start|>user\n<tool_response>\n{{ .Content }}\n</tool_response><|im_end|>\n"
    '{{ else if ne .Role "system" }}<|im_start|>{{ .Role }}\n{{ .Content }}'
    "{{ if .ToolCalls }}{{ range .ToolCalls }}\n<tool_call>\n"
    '{"name": "{{ .Function.Name }}", "arguments": {{ json .Function.Arguments }}}\n</tool_call>{{ end }}{{ end }}'
    "<|im_end|>\n{{ end }}{{ end }}<|im_start|>assistant\n"
)


def main(folder: Path, seed: int) -> None:
    """Write the model into `folder`, and a Modelfile for Ollama beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = trained()
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder / "config.json", CONFIG)
    write(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": END})
    write(folder / "tokenizer_config.json", {**TOKENIZER_CONFIG, "chat_template": JINJA})
    save(weights(tokenizer, seed), folder / "model.safetensors")
    # One thread: on few and busy cores several wait for each other, and an answer takes ten times as long.
    parameters = {"stop": "<|im_end|>", "num_ctx": CONTEXT, "num_thread": 1}
    lines = "".join(f"PARAMETER {name} {value}\n" for name, value in parameters.items())
    modelfile = f'FROM {folder.absolute()}\nTEMPLATE """{GO}"""\n{lines}'
    folder.with_suffix(".modelfile").write_text(modelfile)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": HEAD,
    "max_position_embeddings": 2 * CONTEXT,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": END,
    "hidden_act": "silu",
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "<|im_end|>",
    "pad_token": "</s>",
    "add_bos_token": False,  # then neither server adds one
    "clean_up_tokenization_spaces": False,
}


def trained() -> Tokenizer:
    """A tokenizer from the first files of Python's library, by name: the same on every machine with this Python."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    files = sorted(glob.glob(sysconfig.get_paths()["stdlib"] + "/*.py"))[:60]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train(files, trainer)
    return tokenizer


def weights(tokenizer: Tokenizer, seed: int) -> dict[str, Any]:
    """Every tensor. Control tokens and unprintable pieces have no chance; the end is a little likelier than others."""
    random = np.random.default_rng(seed)

    def normal(rows: int, columns: int, deviation: float) -> Any:
        return (random.standard_normal((rows, columns)) * deviation).astype(np.float16)

    embeddings, head = normal(VOCABULARY, HIDDEN, 1), normal(VOCABULARY, HIDDEN, 0.3)
    silent = [i for i in range(VOCABULARY) if i < len(SPECIAL) or not _clean(tokenizer.decode([i]))]
    head[silent] = 0
    head[END] = normal(1, HIDDEN, 0.45)[0]
    ones = np.ones(HIDDEN, np.float16)
    tensors = {"model.embed_tokens.weight": embeddings, "lm_head.weight": head, "model.norm.weight": ones}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}."
        for name in "qkvo":
            deviation = 0.12 if name in "qk" else 0.06
            tensors[f"{place}self_attn.{name}_proj.weight"] = normal(HIDDEN, HIDDEN, deviation)
        tensors[place + "mlp.gate_proj.weight"] = normal(INNER, HIDDEN, 0.06)
        tensors[place + "mlp.up_proj.weight"] = normal(INNER, HIDDEN, 0.06)
        tensors[place + "mlp.down_proj.weight"] = normal(HIDDEN, INNER, 0.06)
        tensors[place + "input_layernorm.weight"] = ones
        tensors[place + "post_attention_layernorm.weight"] = ones
    return tensors


def _clean(piece: str) -> bool:
    return all(char == "\n" or (char.isascii() and char.isprintable()) for char in piece)


def save(tensors: dict[str, Any], path: Path) -> None:
    """A safetensors file: eight bytes of length, a JSON header, the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
