"""A loaded student and its one synchronous pass: the reference that the engine must equal.

B items, T tokens, C labels, E exits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from service.bundle.load import Bundle, GoldenSample
from service.bundle.manifest import Manifest
from service.errors import GoldenMismatch, GraphMismatch, SettingsInvalid
from service.runtime import heads
from service.runtime.encode import Encoded, EncodedPair, Encoder, Ids, pad
from service.runtime.heads import ExitPolicy, ExitSetting, Floats
from service.runtime.joined import SHORT_TEXT, JoinedPair, State, joined_feeds, joined_length, texts_of
from service.runtime.pipeline import UNREACHED, Array, Pass, Rows, RunStage
from service.runtime.plan import Pipeline, apart_pipeline_of, pipeline_of, unsplit_pipeline_of
from service.runtime.session import Execution, StageSession, load_sessions

# bfloat16 keeps 8 bits of a product: over 6 to 12 layers 0.5 to 1% of an output's length is lost (an embedding's
# cosine stays above 0.999); beyond this something is wrong
BF16_RTOL: Final = 0.05
# exit policies of risks that are kept; callers use a few, again and again
MOST_POLICIES: Final = 64


class Outcome(NamedTuple):
    """Where an item left, and what it left with.

    Attributes:
        exit_index: which exit.
        raw: its raw output: logits [C], embedding [D] or score [].
        likeliest: of logits, the place of the largest...
        probability: ...and its probability; None: they were not worked out for the batch as a whole.
    """

    exit_index: int
    raw: Floats
    likeliest: int | None = None
    probability: float | None = None


# subtle: what calling the class with all four does, without a frame for each item: every text answered is one
whole_outcome: Callable[[tuple[int, Floats, int, float]], Outcome] = partial(tuple.__new__, Outcome)


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """The outcomes of a batch as arrays: `exit_index` int64 [B], `raw` float32 [B, C] (or [B, D], or [B])."""

    exit_index: Rows
    raw: Floats


class TextReader:
    """The stages that read one text of a pair by itself, as a student of their own. Safe from several threads."""

    def __init__(self, manifest: Manifest, run_stage: RunStage, *, backend: str) -> None:
        self.backend = backend
        self.pipeline: Pipeline = apart_pipeline_of(manifest)
        self._run_stage = run_stage

    def begin(self, feeds: Mapping[str, Array], policies: ExitPolicy | Sequence[ExitPolicy]) -> Pass:
        """A pass of padded token inputs (int64 [B, T]); its only exit gives states."""
        return Pass(self.pipeline, self._run_stage, feeds, policies)

    def read(self, texts: Sequence[Encoded], *, length: int | None = None) -> list[State]:
        """What each text gives, as one batch, cut to its own length. Raises: RunFailed: a graph failed."""
        going = self.begin(pad(texts, pad_id=self.pipeline.pad_id, length=length), ExitPolicy(()))
        stepped = going.step()
        while not going.done:
            stepped = going.step()
        assert stepped.raw is not None, "the last stage ends with a state"
        return [state_of(raw, text.kept) for text, raw in zip(texts, stepped.raw, strict=True)]


class FullDepth:
    """A student's stages as one graph, for items that go to full depth anyway: the same answers, to the bit, without
    the exits on the way. Safe from several threads."""

    def __init__(self, manifest: Manifest, session: StageSession, *, backend: str) -> None:
        self.backend = backend
        self.pipeline: Pipeline = unsplit_pipeline_of(manifest)
        self._run_stage = _runner((session,))

    def begin(self, feeds: Mapping[str, Array], policies: ExitPolicy | Sequence[ExitPolicy]) -> Pass:
        """A pass of padded token inputs (int64 [B, T]) to the last exit, whatever the policies."""
        return Pass(self.pipeline, self._run_stage, feeds, policies)


def _runner(sessions: Sequence[StageSession]) -> RunStage:
    """Runs stages by their number; it holds the sessions alone, so that a student is freed as soon as it is let go."""

    def run(stage_index: int, feeds: Mapping[str, Array], outputs: Sequence[str]) -> Mapping[str, Array]:
        return sessions[stage_index].run(feeds, outputs)

    return run


def state_of(raw: Array, tokens: int) -> State:
    """A copy of a text's row of a batch, [T, S] or [S], without its padding: it keeps nothing of the batch alive."""
    return np.array(raw[:tokens] if raw.ndim > 1 else raw)


class Student:
    """A student with its graphs loaded on one backend in one precision. Safe from several threads once made.

    Where the texts of a pair are read apart, `apart` reads one; the student itself joins what two have given.
    `full_depth` runs all stages at once, where the backend can.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str = "onnxruntime",
        precision: str | None = None,
        how: Execution = Execution(),  # noqa: B008 - frozen
    ) -> None:
        """Load the tokenizer and every stage.

        Args:
            bundle: verified.
            backend: a backend's name, or "auto".
            precision: one of the manifest's, or "bf16" (OpenVINO, from the fp32 graphs); None: its default.
            how: cores of one run, and runs at one time.
        Raises:
            GraphMismatch: a graph or the tokenizer does not load, or tensors differ from the manifest.
            SettingsInvalid: no such backend or precision.
            BackendUnavailable: the backend or the precision cannot be used here.
        """
        _check_one_exit_shape(bundle.manifest)
        self.bundle = bundle
        self.manifest = bundle.manifest
        self._pool = load_sessions(bundle, backend=backend, precision=precision, how=how)
        self.backend = self._pool.backend
        self.precision = self._pool.precision
        self.pad_id = self.manifest.tokenizer.pad_id
        self._named: dict[ExitSetting, ExitPolicy] = {}
        self._by_risk: dict[ExitSetting, ExitPolicy] = {}
        separate = self.manifest.apart > 0
        self.encoder = Encoder(
            bundle.tokenizer_path, max_tokens=self.manifest.max_tokens, pad_id=self.pad_id, apart=separate
        )
        self.pipeline = pipeline_of(self.manifest)
        self.apart = TextReader(self.manifest, _runner(self._pool.sessions), backend=self.backend) if separate else None
        whole = self._pool.unsplit
        self.full_depth = None if whole is None else FullDepth(self.manifest, whole, backend=self.backend)

    def __repr__(self) -> str:
        return f"<Student {self.manifest.name} {self.precision} on {self.backend}>"

    def policy(self, exit: ExitSetting = "default") -> ExitPolicy:
        """The exit policy for a request's `exit`, certified for this backend and precision."""
        policies: dict[ExitSetting, ExitPolicy] = self._named if isinstance(exit, str) else self._by_risk
        known = policies.get(exit)
        if known is None:
            known = heads.policy_for(self.manifest, backend=self.backend, precision=self.precision, exit=exit)
            if len(policies) >= MOST_POLICIES:  # of risks there are endlessly many
                policies.clear()
            policies[exit] = known
        return known

    def run_stage(
        self, stage_index: int, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run one stage's graph for the outputs named (None: all), all by tensor name. Raises: RunFailed."""
        return self._pool.sessions[stage_index].run(feeds, outputs)

    def begin(self, feeds: Mapping[str, Array], policies: ExitPolicy | Sequence[ExitPolicy]) -> Pass:
        """A pass of padded token inputs (int64 [B, T]), or of what `joined_feeds` gives, through its stages."""
        return Pass(self.pipeline, self._run_own, feeds, policies)

    def _run_own(self, stage_index: int, feeds: Mapping[str, Array], outputs: Sequence[str]) -> Mapping[str, Array]:
        return self.run_stage(self.manifest.apart + stage_index, feeds, outputs)

    def join(self, pairs: Sequence[Encoded], *, length: int | None = None) -> list[JoinedPair]:
        """Read both texts of each pair, the first ones as one batch and the second ones as another.

        Args:
            pairs: at least one; of a student that reads texts apart.
            length: pad the second texts to this many tokens instead of the longest one's.
        Raises: RunFailed: a graph failed.
        """
        assert self.apart is not None, "this student reads a pair as one sequence"
        firsts, seconds = texts_of(pairs)
        read = zip(pairs, self.apart.read(firsts), self.apart.read(seconds, length=length), strict=True)
        return [JoinedPair(first, second, billed=pair.kept) for pair, first, second in read]

    def _feeds(self, batch: Sequence[Encoded], length: int | None = None) -> Mapping[str, Array]:
        if self.pipeline.joins is None:
            return pad(batch, pad_id=self.pad_id, length=length)
        return joined_feeds(self.join(batch, length=length), self.pipeline.joins, length=length)

    def of_ids(self, ids: Ids, *, first: int = SHORT_TEXT) -> Encoded:
        """An item of these ids; where texts are read apart, a pair whose first text has so many of them."""
        types = np.zeros_like(ids)
        if self.apart is None:
            return Encoded(ids, types, tokens=len(ids), kept=len(ids))
        both, kinds = np.concatenate([ids[:first], ids]), np.concatenate([types[:first], types + 1])
        return EncodedPair(both, kinds, tokens=len(both), kept=len(both), first_kept=len(both) - len(ids))

    def run_padded(self, feeds: Mapping[str, Array], policies: ExitPolicy | Sequence[ExitPolicy]) -> BatchOutcome:
        """Answer a padded batch, compacting the survivors after each stage.

        Args:
            feeds: as from `encode.pad`.
            policies: one for the whole batch, or one for each item.
        Raises:
            RunFailed: a graph failed. Outputs that are not finite are returned as they are.
        """
        items = len(feeds["attention_mask"])
        going = self.begin(feeds, policies)
        exit_index = np.empty(items, dtype=np.int64)
        raw: Floats | None = None
        while not going.done:
            stepped = going.step()
            if stepped.raw is None or stepped.exit_index is None:
                continue
            if raw is None:
                raw = np.empty((items, *stepped.raw.shape[1:]), dtype=np.float32)
            rows = stepped.rows[stepped.leaves]
            exit_index[rows] = stepped.exit_index
            raw[rows] = stepped.raw[stepped.leaves]
        assert raw is not None, "the last stage has an exit"
        return BatchOutcome(exit_index, raw)

    def run(self, batch: Sequence[Encoded], policies: ExitPolicy | Sequence[ExitPolicy]) -> list[Outcome]:
        """Answer encoded items as one batch, in order. Raises: RunFailed: a graph failed."""
        if not batch:
            return []
        outcome = self.run_padded(self._feeds(batch), policies)
        return [Outcome(int(left), raw) for left, raw in zip(outcome.exit_index, outcome.raw, strict=True)]

    def all_exits(self, batch: Sequence[Encoded], *, length: int | None = None) -> list[Floats]:
        """Every exit's raw output of one batch to full depth: E arrays float32 [B, ...]. Raises: RunFailed.

        Args:
            batch: at least one item.
            length: pad to this many tokens instead of the longest item's; of pairs read apart, the second texts.
        """
        policy = ExitPolicy((UNREACHED,) * (len(self.manifest.exits) - 1))
        going = self.begin(self._feeds(batch, length), policy)
        raws: list[Floats] = []
        while not going.done:
            stepped = going.step()
            if stepped.raw is not None:
                raws.append(stepped.raw)
        return raws

    def check_golden(self) -> None:
        """Run every golden sample alone and to full depth.

        Raises:
            GoldenMismatch: other ids, or or outputs outside the tolerance; names sample and exit.
            RunFailed: a graph failed.
        """
        for index, sample in enumerate(self.bundle.golden.samples):
            self._check_sample(index, sample)

    def _check_sample(self, index: int, sample: GoldenSample) -> None:
        text = sample.text if sample.text_pair is None else (sample.text, sample.text_pair)
        encoded = self.encoder.encode([text])
        where = f"{self.manifest.name} {self.precision} on {self.backend}: golden sample {index}"
        if tuple(encoded[0].input_ids.tolist()) != sample.input_ids:
            raise GoldenMismatch(f"{where}: the tokenizer gives other ids")
        for leave, raw in zip(self.manifest.exits, self.all_exits(encoded), strict=True):
            wanted = np.array(sample.outputs[self._pool.graphs][leave.id], dtype=np.float32)
            self._check_output(f"{where}, exit {leave.id!r}", wanted, raw[0].reshape(-1))
        if self.full_depth is not None:
            whole = self.full_depth.begin(self._feeds(encoded), heads.never(self.manifest)).step().raw
            assert whole is not None, "its only stage has an exit"
            self._check_output(f"{where}, all stages as one", wanted, whole[0].reshape(-1))

    def _check_output(self, where: str, wanted: Floats, found: Floats) -> None:
        if found.shape != wanted.shape:
            raise GoldenMismatch(f"{where}: {found.size} values, not {wanted.size}")
        worst, tolerance = self._distance(wanted, found)
        # subtle: written so that NaN fails
        if not worst <= tolerance:
            raise GoldenMismatch(f"{where}: differs by {worst:.3g}, more than {tolerance:.3g}")

    def _distance(self, wanted: Floats, found: Floats) -> tuple[float, float]:
        """How far an output is from the golden one, and how far it may be.

        A precision with graphs of its own is held to the manifest's largest difference; one computed from the graphs
        of another, to a share of the output's length.
        """
        if self.precision in self.manifest.precisions:
            return float(np.abs(found - wanted).max()), self.manifest.precisions[self.precision].golden_atol
        return float(np.linalg.norm(found - wanted)) / max(float(np.linalg.norm(wanted)), 1e-6), BF16_RTOL

    def prove(self, *, token_budget: int) -> None:
        """Run the largest batch that the budget allows once, through every stage.

        Args:
            token_budget: padded tokens of a batch.
        Raises:
            SettingsInvalid: the longest legal item does not fit the budget.
            RunFailed: a graph failed.
        """
        longest = self.manifest.max_tokens
        if longest > token_budget:
            raise SettingsInvalid(
                f"token budget {token_budget} is below the {longest} tokens {self.manifest.name} takes"
            )
        ids = np.full(longest, self.pad_id, dtype=np.int64)
        tokens = longest if self.apart is None else joined_length(longest, longest)
        largest = [self.of_ids(ids, first=longest)] * max(1, token_budget // tokens)
        self.all_exits(largest)
        if self.full_depth is not None:
            self.full_depth.begin(self._feeds(largest), heads.never(self.manifest)).step()


def _check_one_exit_shape(manifest: Manifest) -> None:
    shapes = {manifest.stage(leave.stage).outputs[leave.output].dims for leave in manifest.exits}
    if len(shapes) > 1:
        raise GraphMismatch(f"{manifest.name}: its exits write different shapes: {sorted(map(str, shapes))}")


def batches_by_length(encoded: Sequence[Encoded], batch_items: int) -> list[list[int]]:
    """Places of items, sorted by length and cut into batches, so that padding is small.

    Args:
        encoded: the items.
        batch_items: the most items in a batch.
    Returns: lists of indices into `encoded`; every index once.
    """
    order = np.argsort([item.kept for item in encoded], kind="stable").tolist()
    return [order[i : i + batch_items] for i in range(0, len(order), batch_items)]
