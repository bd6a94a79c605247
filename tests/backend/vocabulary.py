"""The test models' byte-level BPE: words, and the merges trained on them. The same on every machine."""

import heapq

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
