#!/usr/bin/env python3
"""Writes a tiny random-weight model that llama-server loads, for tests and the demonstration.

    make_model.py KIND OUT.gguf [--seed N] [--ctx N] [--template plain|think] [--size tiny|3b]

KIND is llama (full attention), gemma3 (sliding window), granitehybrid (Mamba-2 with attention in two of
ten layers) or mamba2 (purely recurrent); or mmproj, llama-server's --mmproj to go with any of them, for images and audio. Needs
numpy and python3-gguf: get_llama_server brings both. The same arguments always give the same bytes, on the same numpy.
`--size 3b`, of llama and granitehybrid, is for a GPU: as heavy as a field model of that size (115 KB of keys and values a
token; 8 KB, and 76 MB a recurrent state), with as small a vocabulary.

Measured with llama-server 0.7.0 build 11669 on two x86 cores, seed 1; prompts of GPL-3 and Python text. "Pieces": the same
tokens fed 1,024 at a time with n_predict 0; "top 20": the largest difference among the log-probabilities of the 20 likeliest
first tokens. "Other prompt": everything but the last 50 tokens differs. "Early": of 12,000 tokens, those 10 to 59, or the one
at 10, are changed.

                                              llama   gemma3   granitehybrid   mamba2
    prompt tokens/s, 2,000 (8,000) tokens     2,200    3,300      1,950         4,000
                                             (1,580)  (3,200)    (1,960)       (4,300)
    pieces, 12,000 tokens: first token        0.0000   0.0030     0.0006        0.0000
                           top 20             0.0000   0.0038     0.0025        0.0000
    other prompt, 3,000 tokens: top 20        1.03     2.03       1.51          2.11
                 12,000 tokens: top 20        2.02     1.33       1.33          1.74
    early, 50 tokens: top 20                  0.183    0.073      0.209         0.218
    early, one token: top 20                  0.053    0.017      0.057         0.043
    saved file, 17,402 tokens                 36 MB    34 MB      10.9 MB       1.8 MB

English takes 2.8 characters a token, Python code 2.7 to 3.1.
"""

import argparse
import os

import numpy as np
import gguf

from vocabulary import MERGES, byte_characters, train_merges

EMBED = 256            # width of the residual stream
LAYERS = {"llama": 8, "gemma3": 8, "granitehybrid": 10, "mamba2": 8}
ATTENTION_LAYERS = (3, 8)  # of granitehybrid
HEADS = 2
KV_HEADS = 1
HEAD_DIM = 64
FEED_FORWARD = 512
SSM_INNER = 512
SSM_STATE = 32
SSM_HEADS = 8
SSM_GROUPS = 1
SSM_CONV = 4
WINDOW = 512
LOGIT_STD = 2.5        # spread of the logits: sharp enough that a wrong state shows, not so that it is chaotic
SCORE_STD = 2.0        # spread of attention scores: a head looks at some tens of tokens, not at the mean of all
FORBIDDEN_LOGIT = -30.0

# Of mmproj: an image takes PATCHES tokens, half a minute of audio FRAMES / 4.
TOWER = {"width": 64, "heads": 2, "feed_forward": 128, "layers": 2}
IMAGE = 32             # pixels a side; a bigger image is cut into such pieces
PATCH = 8
PATCHES = (IMAGE // PATCH) ** 2
MEL_BINS = 80
FRAMES = 3000          # of 10 ms, as whisper has them

# What differs in the models of --size 3b.
BIG = {
    "llama": {"EMBED": 3072, "HEADS": 24, "KV_HEADS": 8, "HEAD_DIM": 128, "FEED_FORWARD": 8192, "LAYERS": {"llama": 28}},
    "granitehybrid": {"EMBED": 2048, "HEADS": 32, "KV_HEADS": 8, "FEED_FORWARD": 8192, "LAYERS": {"granitehybrid": 40},
                      "ATTENTION_LAYERS": (5, 15, 25, 35), "SSM_INNER": 4096, "SSM_STATE": 128, "SSM_HEADS": 64},
}

# --- tokenizer --------------------------------------------------------------------------------------------

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# ChatML, with tools and one template argument (persona), since a proxy has to get both right.
TEMPLATE = """\
{%- if persona is defined %}{{- '<|im_start|>system\\nYou are ' + persona + '.<|im_end|>\\n' }}{%- endif %}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nYou may call these functions:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\n\\nAnswer with <tool_call>\\n{"name": NAME, "arguments": OBJECT}\\n</tool_call> to call one.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- if message.content is string %}{{- message.content }}{%- endif %}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{%- if call.function.arguments is string %}{{- call.function.arguments }}{%- else %}{{- call.function.arguments | tojson }}{%- endif %}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role != 'system' or not loop.first %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'GENERATION_SUFFIX' }}{%- endif %}"""

# `think` stands for the templates whose suffix the history does not repeat: the next turn leaves the prompt
# before its end, which is what costs hybrid models a rewind.
SUFFIX = {
    "plain": "<|im_start|>assistant\\n",
    "think": "<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n",
}


def add_vocabulary(writer, template):
    """Writes the tokenizer; returns its size and the ids a random model must not generate."""
    merges = train_merges(MERGES)
    tokens = list(byte_characters().values()) + ["".join(pair) for pair in merges]
    byte_of = {character: byte for byte, character in byte_characters().items()}
    # Bytes outside ASCII would make invalid UTF-8, some builds answer that with 500. Control tokens would
    # end an answer at random, and a test that asks for four tokens wants four.
    forbidden = [number for number, token in enumerate(tokens)
                 if any(byte_of[character] > 126 or byte_of[character] < 9 for character in token)]
    types = [gguf.TokenType.NORMAL] * len(tokens)
    while (len(tokens) + len(SPECIAL)) % 32:
        forbidden.append(len(tokens))
        tokens.append(f"<|unused_{len(tokens)}|>")
        types.append(gguf.TokenType.UNUSED)
    first_special = len(tokens)
    for token in SPECIAL:
        forbidden.append(len(tokens))
        tokens.append(token)
        types.append(gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(first_special)
    writer.add_pad_token_id(first_special)
    writer.add_eos_token_id(first_special + 2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE.replace("GENERATION_SUFFIX", SUFFIX[template]))
    return len(tokens), forbidden


# --- weights ----------------------------------------------------------------------------------------------

class Weights:
    """Random tensors for one model. Shapes are numpy's: outputs first, inputs last."""

    def __init__(self, writer, seed, pool_size=0):
        self.writer = writer
        self.random = np.random.default_rng(seed)
        self.pool = None
        self.pool_size = pool_size

    def normal(self, *shape):
        """Of a big model's billions of weights only some are drawn: each matrix is another stretch of the same ones."""
        count = int(np.prod(shape))
        if not self.pool_size:
            return self.random.standard_normal(shape)
        if self.pool is None:
            self.pool = self.random.standard_normal(self.pool_size, dtype=np.float32)
        start = int(self.random.integers(self.pool_size - count))
        return self.pool[start:start + count].reshape(shape)

    def add(self, name, array):
        self.writer.add_tensor(name, np.ascontiguousarray(array, dtype=np.float32))

    def add_half(self, name, array):
        self.writer.add_tensor(name, np.ascontiguousarray(array, dtype=np.float16))

    def matrix(self, outputs, inputs, gain=1.0):
        """Unit-variance inputs give outputs of standard deviation `gain`."""
        return self.normal(outputs, inputs) * float(gain / np.sqrt(inputs))

    def into_residual(self, inputs, gain):
        """A projection back into the residual stream; its first row is zero (see `edges`)."""
        weights = self.matrix(EMBED, inputs, gain)
        weights[0] = 0.0
        return weights

    def edges(self, vocabulary, forbidden, embedding_scale=1.0, logit_scale=1.0):
        """Embedding, last norm and output. The first channel of the stream is a constant that no layer
        writes to, so that the output matrix can use it as a bias against forbidden tokens."""
        embedding = self.normal(vocabulary, EMBED).copy()
        embedding[:, 0] = 1.0
        self.add_half("token_embd.weight", embedding / embedding_scale)
        norm = np.ones(EMBED)
        norm[0] = 4.0
        self.add("output_norm.weight", norm)
        output = self.matrix(vocabulary, EMBED, LOGIT_STD * logit_scale)
        output[:, 0] = 0.0
        output[forbidden] *= 0.2
        output[forbidden, 0] = FORBIDDEN_LOGIT / 4.0 * logit_scale
        self.add_half("output.weight", output)

    def layer_norm(self, name, width):
        self.add(f"{name}.weight", np.ones(width))
        self.add(f"{name}.bias", np.zeros(width))

    def attention(self, block, score_std, gain):
        self.add_half(f"{block}.attn_q.weight", self.matrix(HEADS * HEAD_DIM, EMBED, score_std))
        self.add_half(f"{block}.attn_k.weight", self.matrix(KV_HEADS * HEAD_DIM, EMBED))
        self.add_half(f"{block}.attn_v.weight", self.matrix(KV_HEADS * HEAD_DIM, EMBED))
        self.add_half(f"{block}.attn_output.weight", self.into_residual(HEADS * HEAD_DIM, gain))

    def feed_forward(self, block, gain):
        self.add(f"{block}.ffn_norm.weight", np.ones(EMBED))
        self.add_half(f"{block}.ffn_gate.weight", self.matrix(FEED_FORWARD, EMBED))
        self.add_half(f"{block}.ffn_up.weight", self.matrix(FEED_FORWARD, EMBED))
        self.add_half(f"{block}.ffn_down.weight", self.into_residual(FEED_FORWARD, gain))

    def mamba2(self, block, gain):
        channels = SSM_INNER + 2 * SSM_GROUPS * SSM_STATE
        into = self.matrix(2 * SSM_INNER + 2 * SSM_GROUPS * SSM_STATE + SSM_HEADS, EMBED)
        into[-SSM_HEADS:] *= 0.2  # the step size follows its bias, so that the memory below is what it says
        self.add_half(f"{block}.ssm_in.weight", into)
        convolution = self.random.standard_normal((channels, SSM_CONV)) / np.sqrt(SSM_CONV)
        self.add(f"{block}.ssm_conv1d.weight", convolution)
        # silu after a shift of -0.4 has mean zero: the state then sums what differs between two texts, not
        # what all texts have in common.
        self.add(f"{block}.ssm_conv1d.bias", np.full(channels, -0.4))
        # Each head remembers another number of tokens, from 16 to 65,536, with a step of 1/sqrt(memory), so
        # that all contribute alike and what stood at the start of a long prompt still shows at its end.
        memory = np.geomspace(16.0, 65536.0, SSM_HEADS)
        step = 1.0 / np.sqrt(memory)
        self.add(f"{block}.ssm_dt.bias", np.log(np.expm1(step)))
        self.add(f"{block}.ssm_a", (-1.0 / (memory * step)).reshape(SSM_HEADS, 1))
        self.add(f"{block}.ssm_d", np.full((SSM_HEADS, 1), 0.2))
        self.add(f"{block}.ssm_norm.weight", np.ones((SSM_GROUPS, SSM_INNER // SSM_GROUPS)))
        self.add_half(f"{block}.ssm_out.weight", self.into_residual(SSM_INNER, gain))


def add_ssm_header(writer):
    writer.add_ssm_conv_kernel(SSM_CONV)
    writer.add_ssm_inner_size(SSM_INNER)
    writer.add_ssm_state_size(SSM_STATE)
    writer.add_ssm_time_step_rank(SSM_HEADS)
    writer.add_ssm_group_count(SSM_GROUPS)


def write_llama(writer, weights, vocabulary, forbidden):
    layers = LAYERS["llama"]
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    weights.edges(vocabulary, forbidden)
    for layer in range(layers):
        block = f"blk.{layer}"
        weights.add(f"{block}.attn_norm.weight", np.ones(EMBED))
        weights.attention(block, SCORE_STD, 0.7)
        weights.feed_forward(block, 0.7)


def write_gemma3(writer, weights, vocabulary, forbidden):
    layers = LAYERS["gemma3"]  # the fifth of each six attends to everything, the others to the window
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(1000000.0)
    writer.add_sliding_window(WINDOW)
    weights.edges(vocabulary, forbidden, embedding_scale=np.sqrt(EMBED))
    for layer in range(layers):
        block = f"blk.{layer}"
        into_residual = np.full(EMBED, 0.5)
        into_residual[0] = 0.0
        weights.add(f"{block}.attn_norm.weight", np.ones(EMBED))
        weights.attention(block, 1.0, 1.0)
        weights.add(f"{block}.attn_q_norm.weight", np.full(HEAD_DIM, SCORE_STD))
        weights.add(f"{block}.attn_k_norm.weight", np.ones(HEAD_DIM))
        weights.add(f"{block}.post_attention_norm.weight", into_residual)
        weights.feed_forward(block, 1.0)
        weights.add(f"{block}.post_ffw_norm.weight", into_residual)


def write_granitehybrid(writer, weights, vocabulary, forbidden):
    layers = LAYERS["granitehybrid"]
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([KV_HEADS if layer in ATTENTION_LAYERS else 0 for layer in range(layers)])
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_scaling_finetuned(False)  # this architecture's way of saying: no position encoding
    writer.add_attention_scale(1.0 / np.sqrt(HEAD_DIM))
    writer.add_embedding_scale(1.0)
    writer.add_residual_scale(1.0)
    writer.add_logit_scale(1.0)
    add_ssm_header(writer)
    weights.edges(vocabulary, forbidden)
    for layer in range(layers):
        block = f"blk.{layer}"
        weights.add(f"{block}.attn_norm.weight", np.ones(EMBED))
        if layer in ATTENTION_LAYERS:
            weights.attention(block, SCORE_STD, 0.7)
        else:
            weights.mamba2(block, 0.5)
        weights.feed_forward(block, 0.7)


def write_mamba2(writer, weights, vocabulary, forbidden):
    layers = LAYERS["mamba2"]
    writer.add_block_count(layers)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    add_ssm_header(writer)
    weights.edges(vocabulary, forbidden)
    for layer in range(layers):
        block = f"blk.{layer}"
        weights.add(f"{block}.attn_norm.weight", np.ones(EMBED))
        weights.mamba2(block, 0.5)


def write_tower(writer, weights, modality, letter, projector):
    """The transformer of one sense, as CLIP and whisper have it; whisper's keys have no bias."""
    width, feed_forward = TOWER["width"], TOWER["feed_forward"]
    writer.add_bool(f"clip.has_{modality}_encoder", True)
    writer.add_string(f"clip.{modality}.projector_type", projector)
    writer.add_uint32(f"clip.{modality}.embedding_length", width)
    writer.add_uint32(f"clip.{modality}.feed_forward_length", feed_forward)
    writer.add_uint32(f"clip.{modality}.block_count", TOWER["layers"])
    writer.add_uint32(f"clip.{modality}.projection_dim", EMBED)
    writer.add_uint32(f"clip.{modality}.attention.head_count", TOWER["heads"])
    writer.add_float32(f"clip.{modality}.attention.layer_norm_epsilon", 1e-5)
    for layer in range(TOWER["layers"]):
        block = f"{letter}.blk.{layer}"
        for norm in ("ln1", "ln2"):
            weights.layer_norm(f"{block}.{norm}", width)
        for name, outputs, inputs, gain in (("attn_q", width, width, SCORE_STD), ("attn_k", width, width, 1.0),
                                            ("attn_v", width, width, 1.0), ("attn_out", width, width, 0.7),
                                            ("ffn_up", feed_forward, width, 1.0), ("ffn_down", width, feed_forward, 0.7)):
            weights.add_half(f"{block}.{name}.weight", weights.matrix(outputs, inputs, gain))
            if name != "attn_k":
                weights.add(f"{block}.{name}.bias", np.zeros(outputs))


def write_projection(weights, name, inputs, gain):
    """Into what stands for a token's embedding: its first channel is the constant that they all have (see `edges`)."""
    weights.add_half(f"{name}.weight", weights.into_residual(inputs, gain))
    bias = np.zeros(EMBED)
    bias[0] = 1.0
    weights.add(f"{name}.bias", bias)


def write_mmproj(writer, weights):
    width = TOWER["width"]
    write_tower(writer, weights, "vision", "v", "mlp")
    writer.add_uint32("clip.vision.image_size", IMAGE)
    writer.add_uint32("clip.vision.patch_size", PATCH)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.25, 0.25, 0.25])
    writer.add_bool("clip.use_gelu", True)
    weights.add("v.patch_embd.weight", weights.matrix(width, 3 * PATCH * PATCH).reshape(width, 3, PATCH, PATCH))
    weights.add("v.class_embd", weights.normal(width))
    weights.add("v.position_embd.weight", weights.normal(PATCHES + 1, width) * 0.5)
    weights.layer_norm("v.pre_ln", width)
    weights.add_half("mm.0.weight", weights.matrix(EMBED, width))
    weights.add("mm.0.bias", np.zeros(EMBED))
    write_projection(weights, "mm.2", EMBED, 1.7)  # GELU leaves six tenths

    write_tower(writer, weights, "audio", "a", "qwen2a")
    writer.add_uint32("clip.audio.num_mel_bins", MEL_BINS)
    for number, inputs in ((1, MEL_BINS), (2, width)):
        weights.add_half(f"a.conv1d.{number}.weight", weights.matrix(width, inputs * 3, 1.7).reshape(width, inputs, 3))
        weights.add(f"a.conv1d.{number}.bias", np.zeros((width, 1)))
    weights.add("a.position_embd.weight", weights.normal(FRAMES // 2, width) * 0.5)
    weights.layer_norm("a.post_ln", width)
    write_projection(weights, "mm.a.fc", width, 1.0)


KINDS = {
    "llama": write_llama,
    "gemma3": write_gemma3,
    "granitehybrid": write_granitehybrid,
    "mamba2": write_mamba2,
}


def main():
    parser = argparse.ArgumentParser(description="Writes a tiny random-weight model for llama-server.")
    kinds = [*sorted(KINDS), "mmproj"]
    parser.add_argument("kind", choices=kinds, metavar="KIND", help=", ".join(kinds))
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ctx", type=int, default=65536, help="trained context length")
    parser.add_argument("--template", choices=sorted(SUFFIX), default="plain")
    parser.add_argument("--size", choices=["tiny", "3b"], default="tiny")
    options = parser.parse_args()
    if options.size == "3b":
        if options.kind not in BIG:
            parser.error(f"--size 3b: {' or '.join(BIG)}")
        globals().update(BIG[options.kind])

    unfinished = f"{options.out}.{os.getpid()}.tmp"
    writer = gguf.GGUFWriter(unfinished, "clip" if options.kind == "mmproj" else options.kind)
    writer.add_name(f"{options.size}-{options.kind}")
    pool_size = 0 if options.size == "tiny" else 40_000_000
    weights = Weights(writer, options.seed, pool_size)
    if options.kind == "mmproj":
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        write_mmproj(writer, weights)
    else:
        writer.add_context_length(options.ctx)
        writer.add_embedding_length(EMBED)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        vocabulary, forbidden = add_vocabulary(writer, options.template)
        writer.add_vocab_size(vocabulary)
        KINDS[options.kind](writer, weights, vocabulary, forbidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, options.out)  # a test that waits for the file never sees half of it


if __name__ == "__main__":
    main()
