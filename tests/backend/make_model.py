#!/usr/bin/env python3
"""Writes a tiny random-weight model that llama-server loads, for tests and the demonstration.

    make_model.py KIND OUT.gguf [--seed N] [--ctx N] [--template plain|think] [--size tiny|3b]

KIND is llama (full attention), gemma3 (sliding window), granitehybrid (Mamba-2 with attention in two of
ten layers) or mamba2 (purely recurrent). Needs numpy and python3-gguf: get_llama_server brings both.
The same arguments always give the same bytes, on the same numpy. `--size 3b`, of llama and granitehybrid, is for a GPU: as heavy
as a field model of that size (115 KB of keys and values a token; 8 KB, and 76 MB a recurrent state), with as small a vocabulary.

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
import heapq
import os

import numpy as np
import gguf

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

# What differs in the models of --size 3b.
BIG = {
    "llama": {"EMBED": 3072, "HEADS": 24, "KV_HEADS": 8, "HEAD_DIM": 128, "FEED_FORWARD": 8192, "LAYERS": {"llama": 28}},
    "granitehybrid": {"EMBED": 2048, "HEADS": 32, "KV_HEADS": 8, "FEED_FORWARD": 8192, "LAYERS": {"granitehybrid": 40},
                      "ATTENTION_LAYERS": (5, 15, 25, 35), "SSM_INNER": 4096, "SSM_STATE": 128, "SSM_HEADS": 64},
}

# --- vocabulary -------------------------------------------------------------------------------------------

# Words in rough order of frequency; BPE merges are trained on them, so that English and source code take a
# bit over two characters a token. A built-in list, because a model must not depend on files of the machine.
ENGLISH = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an which you
were her all she there would their we him been has when who will more no if out so said what up its about into
than them can only other new some could time these two may then do first any my now such like our over man me
even most made after also did many before must through back years where much your way well down should because
each just those people how too little state good very make world still own see men work long get here between
both life being under never day same another know while last might us great old year off come since against go
came right used take three himself few house use during without again place american around however home small
found thought went say part once general high upon school every does got united left number course war until
always away something fact though water less public put think almost hand enough far took head yet government
system better set told nothing night end why called find going look asked later knew point next program city
business give group toward young days let room word order line name file list value type code data test error
user message function class return string number object key result index option default change check call input
output read write open close start stop begin create delete remove add update insert replace move copy load save
parse build run make install version path directory folder project package module import export include header
library script command argument parameter variable field member method property attribute constant static public
private protected virtual override template namespace struct union enum interface abstract final const void char
short integer float double boolean true false null none undefined array vector map table column row record entry
item element node tree graph edge leaf root parent child children first second third last next previous current
request response server client proxy cache memory buffer stream socket connection port host address network
protocol header body status timeout retry error exception failure success warning info debug trace log logger
process thread task queue lock mutex signal event handler listener callback async await promise future channel
token model prompt context slot checkpoint prefix restore recompute generation assistant system answer question
instruction example description following please provide given based should ensure correct complete section
document text language sentence paragraph question explain summary detail information application available
information different important possible necessary similar specific particular certain several various common
local global remote external internal original temporary empty full maximum minimum total count size length
width height depth position offset range limit capacity rate speed performance cost time date hour minute second
month week year today issue problem solution bug fix patch commit branch merge repository pull push issue review
comment reference note documentation license copyright permission notice software warranty provided express
implied including limited damages liability contract otherwise arising use dealing rights grant distribute
modify sublicense sell copies persons furnished subject conditions above portions substantial shall
company market money service product customer information number report policy control research study student
health family children mother father woman women country national international political social economic history
power example person reason interest question against different between another through because without before
something anything everything nothing someone everyone although whether therefore perhaps actually already
usually often sometimes together probably certainly especially finally simply really quite rather instead along
across behind below above inside outside beyond within among near towards
expected actual assert equal raise self args kwargs init main print range len str int dict tuple set bool lambda
yield pass break continue elif else except finally try with global nonlocal del in is not and or def async await
pytest unittest django numpy python java javascript typescript rust cpp html css json yaml xml http https url
www com org net github api id uri utf ascii unicode byte bytes bit bits hex hash base64 regex pattern match
sort filter reduce apply select where from join group by having order limit insert into values update delete
view edit search find grep sed cat head tail bash shell exit echo cd ls usr bin home tmp var etc opt lib src
include doc docs tests config settings setup util utils common core base model models form forms admin auth
query queries database field fields manager migration migrations schema foreign primary unique index max min
shape dtype axis mean sum dot matrix plot axes figure label color style width line marker legend title grid
frame series column columns reshape transpose units quantity coordinates time format fits header
expr symbols simplify evaluate integral derivative polynomial function equation solve matrix expression
observation action thought traceback recent call line reproduce reproduction script successfully edited
""".split()

SUFFIXES = "s ed ing er ers ly ion tion ation ment ments able al ity ness ful less ive ous est en ize ized".split()

SYMBOLS = [
    "\n", "\n", "\n", "\n\n", "\n\n", "\n\n\n", "    ", "    ", "        ", "        ", "            ", "                ",
    "   ", "       ", "           ", "               ", "  ", "  ", "\t", "\t\t", ".", ".", ",", ",", " (", "()", "):\n", "(",
    ")", "):", ")\n", ",\n", ".\n", ":\n", ".\n\n", " =", " ==", " !=", " <=", " >=", " +=", " ->", " =>", " {", "{\n", " {\n",
    "}\n", "};\n", "},\n", ";\n", ";", "();\n", ");\n", " //", " #", " \"", "\"", "\",", "\":", "\"\n", "'", " '", "',", "'s",
    "'t", "']", "['", "[", " [", "]", "]\n", "],\n", "\"\"\"", "\"\"\"\n", "```", "```\n", " -", " --", "--", "---", "----",
    "--------", "================", "====", "...", "…", " &&", " ||", "::", " *", "**", " **", "/", "://", "</", ">\n", " <",
    "_", "__", "->", " %", "%s", " &", " |", "\\", "\\n", "#", "##", " @", "@", " \\", "`", " `", "`,", "~", "!", "?", ":", " :",
    " +", " /", "//", "///", "$", " $", "${", "\r\n", "(\"", "('", "([", "({", "\")", "')", "[:", "])", "})", " []", " {}", "(-",
]

MERGES = 2600


def byte_characters():
    """The printable stand-in of each byte in GPT-2's byte-level BPE."""
    kept = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table = {}
    shifted = 0
    for byte in range(256):
        if byte in kept:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + shifted)
            shifted += 1
    return table


def training_pieces():
    """Pieces as the qwen2 pre-tokenizer would cut them, with counts that fall like those of real text."""
    pieces = {}

    def see(piece, count):
        pieces[piece] = pieces.get(piece, 0) + max(1, int(count))

    ordered = list(dict.fromkeys(ENGLISH))
    for rank, word in enumerate(ordered):
        count = 40000 / (rank + 8)
        see(" " + word, count)
        see(word, count / 3)
        see("_" + word, count / 12)
        see("." + word, count / 12)
        see("(" + word, count / 24)
        see(word.capitalize(), count / 10)
        see(" " + word.capitalize(), count / 10)
        if len(word) > 3 and word.isalpha():
            for suffix in SUFFIXES:
                stem = word[:-1] if word.endswith("e") and suffix[0] in "aeio" else word
                see(" " + stem + suffix, count / 40)
    for symbol in SYMBOLS:
        see(symbol, 2500)
    return pieces


def train_merges(count):
    """Plain BPE training. Ties go to the smaller pair, so that the result is the same everywhere."""
    table = byte_characters()
    words = []
    for piece, weight in sorted(training_pieces().items()):
        words.append(([table[byte] for byte in piece.encode()], weight))
    pair_weight = {}
    pair_words = {}
    for number, (parts, weight) in enumerate(words):
        for pair in zip(parts, parts[1:]):
            pair_weight[pair] = pair_weight.get(pair, 0) + weight
            pair_words.setdefault(pair, set()).add(number)
    # The heap holds stale entries too: each change pushes the pair anew, and what no longer agrees is skipped.
    heap = [(-weight, pair) for pair, weight in pair_weight.items()]
    heapq.heapify(heap)
    merges = []
    while heap and len(merges) < count:
        weight, best = heapq.heappop(heap)
        if pair_weight.get(best, 0) != -weight or weight >= 0:
            continue
        merges.append(best)
        changed = set()
        for number in pair_words.pop(best):
            parts, weight = words[number]
            for pair in zip(parts, parts[1:]):
                pair_weight[pair] -= weight
                changed.add(pair)
            joined = []
            position = 0
            while position < len(parts):
                if position + 1 < len(parts) and (parts[position], parts[position + 1]) == best:
                    joined.append(parts[position] + parts[position + 1])
                    position += 2
                else:
                    joined.append(parts[position])
                    position += 1
            parts[:] = joined
            for pair in zip(parts, parts[1:]):
                pair_weight[pair] = pair_weight.get(pair, 0) + weight
                pair_words.setdefault(pair, set()).add(number)
                changed.add(pair)
        for pair in changed:
            if pair_weight[pair] > 0:
                heapq.heappush(heap, (-pair_weight[pair], pair))
    return merges


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


KINDS = {
    "llama": write_llama,
    "gemma3": write_gemma3,
    "granitehybrid": write_granitehybrid,
    "mamba2": write_mamba2,
}


def main():
    parser = argparse.ArgumentParser(description="Writes a tiny random-weight model for llama-server.")
    parser.add_argument("kind", choices=sorted(KINDS), metavar="KIND", help=", ".join(sorted(KINDS)))
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
    writer = gguf.GGUFWriter(unfinished, options.kind)
    writer.add_name(f"{options.size}-{options.kind}")
    writer.add_context_length(options.ctx)
    writer.add_embedding_length(EMBED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    vocabulary, forbidden = add_vocabulary(writer, options.template)
    writer.add_vocab_size(vocabulary)
    pool_size = 0 if options.size == "tiny" else 40_000_000
    KINDS[options.kind](writer, Weights(writer, options.seed, pool_size), vocabulary, forbidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, options.out)  # a test that waits for the file never sees half of it


if __name__ == "__main__":
    main()
