"""How likely given continuations are, in llama.cpp and in transformers: what multiple choice compares.

Sums are float64, of a log-softmax in float64. What continuations have in common is evaluated once in both.
"""

import contextlib
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.errors import ToolkitError
from toolkit.core.native import silenced
from toolkit.evaluate.systems import Score
from toolkit.llamacpp import recurrent
from toolkit.llamacpp.remote import beside_file

TOKENS = 256  # evaluated in one pass; with more, tokens look past more of what is not theirs
SEQUENCES = 64  # in one pass: llama.cpp's own limit is no lower
OUTPUTS = 128  # rows of logits in memory at once: 67 MB for a vocabulary of 128,000

Pair = tuple[list[int], list[int]]


@beside_file
def llamacpp_scores(llm: Any, pairs: Sequence[Pair]) -> Generator[Score, None, None]:
    """Score continuations in a loaded GGUF, in order; pairs are (ids before it, its ids).

    Many pairs share a pass, as branches of a tree of tokens. The beginning that a pass shares with the last one stays
    in the KV cache. A model that keeps a state shares nothing: its state cannot branch, nor be cut back. The context is
    a second one, with the settings of `llm`'s own. Raises ToolkitError if llama.cpp has no memory for it.
    """
    if not pairs:
        return
    longest = max(len(before) + len(continuation) for before, continuation in pairs)
    apart = recurrent.keeps_state(llm)
    most = recurrent.sequences(Path(llm.model_path), SEQUENCES) if apart else SEQUENCES
    with _second_context(llm, longest + TOKENS, most) as context:
        kept: list[int] = []
        for group in _passes(pairs, most, apart=apart):
            tree = _tree(group, kept, apart=apart)
            _keep_alone(context, tree.shared, len(tree.sequences))
            found = _evaluated(llm, context, tree)
            yield from (_summed(tree.targets(*pair), found) for pair in group)
            kept = tree.sequences[0] if tree.sequences and not apart else kept


def _passes(pairs: Sequence[Pair], most: int, *, apart: bool) -> Iterator[list[Pair]]:
    """Divide pairs into passes of few new tokens and `most` sequences; a pair with more has a pass of its own."""
    group: list[Pair] = []
    last: list[int] = []
    tokens = sequences = 0
    for before, continuation in pairs:
        seen = (before + continuation)[:-1]
        new = len(seen) - (0 if apart and seen != last else _in_common(seen, last))
        if group and seen != last and (tokens + new > TOKENS or sequences == most):
            yield group
            group, tokens, sequences = [], 0, 0
        sequences += seen != last or not group
        group.append((before, continuation))
        tokens, last = tokens + new, seen
    yield group


@dataclass
class _Tree:
    """The sequences of a pass. All begin with the `shared` tokens that are cached; the nodes are the others.

    A node is a token at a position; `members` are the sequences that it belongs to, `targets` what may follow it.
    Parents come before their children. `apart`: no node belongs to two sequences.
    """

    sequences: list[list[int]]
    shared: int
    apart: bool = False
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    members: list[list[int]] = field(default_factory=list)
    follows: list[set[int]] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def path(self, seen: list[int]) -> list[int]:
        """Return the nodes of a sequence, from the first that is not shared; new ones are made."""
        nodes, parent = [], -1 - (self.sequences.index(seen) if self.apart else 0)
        for position in range(self.shared, len(seen)):
            node = self._children.setdefault((parent, seen[position]), len(self.tokens))
            if node == len(self.tokens):
                self.tokens.append(seen[position])
                self.positions.append(position)
                self.members.append([])
                self.follows.append(set())
            nodes.append(node)
            parent = node
        return nodes

    def targets(self, before: list[int], continuation: list[int]) -> list[tuple[int, int]]:
        """Return for each token of a continuation the node before it, and the token."""
        if not continuation:
            return []
        nodes = self.path((before + continuation)[:-1])
        return list(zip(nodes[len(before) - 1 - self.shared :], continuation, strict=True))


def _tree(group: Sequence[Pair], kept: list[int], *, apart: bool) -> _Tree:
    """Make the tree of a pass; tokens are shared with the last pass up to the first whose logits are wanted."""
    wanted = [(before, continuation) for before, continuation in group if continuation]
    sequences = list({tuple(seen): seen for before, after in wanted if (seen := (before + after)[:-1])}.values())
    shared = min([_in_common(kept, seen) for seen in sequences] + [len(before) - 1 for before, _ in wanted], default=0)
    tree = _Tree(sequences, 0 if apart else shared, apart)
    for number, seen in enumerate(sequences):
        for node in tree.path(seen):
            tree.members[node].append(number)
    for pair in wanted:
        for node, token in tree.targets(*pair):
            tree.follows[node].add(token)
    return tree


def _in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens with which both begin."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


@contextlib.contextmanager
def _second_context(llm: Any, cells: int, sequences: int) -> Iterator[Any]:
    """Give a context of a loaded GGUF for many sequences that share cells of its KV cache."""
    import llama_cpp

    params = type(llm.context_params).from_buffer_copy(llm.context_params)
    params.n_ctx, params.n_batch, params.n_ubatch = cells, TOKENS, TOKENS
    params.n_seq_max, params.kv_unified, params.swa_full = sequences, True, True
    with silenced():  # more cells than trained positions are no fault: several sequences share them
        context = llama_cpp.llama_init_from_model(llm.model, params)
    if not context:
        raise ToolkitError(
            f"llama.cpp has no memory for {cells:,} tokens beside the model",
            hint="set `evaluate.task_items`, leave out tasks with long texts, or use a smaller quantization",
        )
    try:
        yield context
    finally:
        llama_cpp.llama_free(context)


def _keep_alone(context: Any, shared: int, sequences: int) -> None:
    """Forget all but the first `shared` tokens of sequence 0, and let every sequence begin with them."""
    import llama_cpp

    memory = llama_cpp.llama_get_memory(context)
    if not shared:
        llama_cpp.llama_memory_clear(memory, False)
        return
    llama_cpp.llama_memory_seq_keep(memory, 0)
    llama_cpp.llama_memory_seq_rm(memory, 0, shared, -1)
    for number in range(1, sequences):
        llama_cpp.llama_memory_seq_cp(memory, 0, number, 0, shared)


def _evaluated(llm: Any, context: Any, tree: _Tree) -> dict[tuple[int, int], Score]:
    """Evaluate a tree; return the score of each token that may follow a node."""
    import llama_cpp

    found: dict[tuple[int, int], Score] = {}
    batch = llama_cpp.llama_batch_init(TOKENS, 0, SEQUENCES)
    try:
        for nodes in _slices(tree):
            batch.n_tokens = len(nodes)
            for index, node in enumerate(nodes):
                batch.token[index], batch.pos[index] = tree.tokens[node], tree.positions[node]
                batch.n_seq_id[index] = len(tree.members[node])
                for place, number in enumerate(tree.members[node]):
                    batch.seq_id[index][place] = number
                batch.logits[index] = bool(tree.follows[node])
            status = llama_cpp.llama_decode(context, batch)
            if status != 0:
                raise ToolkitError(f"llama.cpp could not evaluate {len(nodes):,} tokens (status {status})")
            wanted = [node for node in nodes if tree.follows[node]]
            if wanted:
                pointer = llama_cpp.llama_get_logits(context)
                rows = np.ctypeslib.as_array(pointer, shape=(len(wanted), llm.n_vocab()))
                for node, row in zip(wanted, rows, strict=True):
                    found.update(((node, token), score) for token, score in _of_row(row, tree.follows[node]))
    finally:
        llama_cpp.llama_batch_free(batch)
    return found


def _slices(tree: _Tree) -> Iterator[list[int]]:
    """Divide the nodes of a tree, in order, into calls of llama.cpp with few tokens and rows of logits."""
    nodes: list[int] = []
    outputs = 0
    for node, follows in enumerate(tree.follows):
        if len(nodes) == TOKENS or (outputs == OUTPUTS and follows):
            yield nodes
            nodes, outputs = [], 0
        nodes.append(node)
        outputs += bool(follows)
    if nodes:
        yield nodes


def _of_row(row: npt.NDArray[np.float32], tokens: Iterable[int]) -> Iterator[tuple[int, Score]]:
    """Yield the score of each token, by one row of logits."""
    likeliest = int(row.argmax())
    exact = row.astype(np.float64)
    exact -= exact[likeliest]
    total = math.log(np.exp(exact).sum())
    for token in tokens:
        yield token, Score(float(exact[token]) - total, token == likeliest)


def _summed(targets: Iterable[tuple[int, int]], found: dict[tuple[int, int], Score]) -> Score:
    scores = [found[target] for target in targets]
    return Score(math.fsum(score.logprob for score in scores), all(score.greedy for score in scores))
