"""Writes the trained network as a GGUF file that `llama.cpp` loads without any further setting."""

from pathlib import Path

import gguf
import numpy as np

import network as shape
from network import Network
from vocabulary import BEGIN, BYTES, END, PRINTABLE, SPECIAL, TOKENS, UNKNOWN

DESCRIPTION = (
    "Remuda's demo model. It multiplies a one-digit by a one- or two-digit number, it counts, and it answers anything "
    "else with one fixed sentence. It proves that a real engine ran a real model; it is of no other use."
)

def write(network: Network, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    describe(writer, sum(weight.numel() for weight in network.parameters()))
    add_tokenizer(writer)
    for name, weight in network.state_dict().items():
        values = weight.detach().numpy()
        # Norms stay whole: they are small, and the engine adds them in 32 bits.
        writer.add_tensor(name, values.astype(np.float16 if values.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: gguf.GGUFWriter, parameters: int) -> None:
    writer.add_name("Remuda demo model (multiplies and counts, nothing else)")
    writer.add_description(DESCRIPTION)
    writer.add_author("The Remuda authors")
    writer.add_size_label(f"{parameters // 1000}K")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(shape.CONTEXT)
    writer.add_embedding_length(shape.WIDTH)
    writer.add_block_count(shape.LAYERS)
    writer.add_feed_forward_length(shape.FEED_FORWARD)
    writer.add_head_count(shape.HEADS)
    writer.add_head_count_kv(shape.HEADS)
    writer.add_layer_norm_rms_eps(shape.NORM_EPSILON)
    writer.add_rope_dimension_count(shape.HEAD_WIDTH)
    writer.add_rope_freq_base(shape.ROPE_BASE)
    writer.add_vocab_size(len(TOKENS))
    # The engine's defaults for requests that say nothing. One candidate makes it greedy at any temperature, so that a
    # client which always sends one still gets the right product.
    writer.add_float32("general.sampling.temp", 0.0)
    writer.add_int32("general.sampling.top_k", 1)


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token.encode("utf-8") for token in TOKENS])
    writer.add_token_scores([0.0] * len(TOKENS))
    special = [kinds.UNKNOWN] + [kinds.CONTROL] * (len(SPECIAL) - 1)
    writer.add_token_types(special + [kinds.BYTE] * len(BYTES) + [kinds.NORMAL] * len(PRINTABLE))
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(Path(__file__).with_name("chat_template.jinja").read_text())
