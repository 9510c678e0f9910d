"""Sections on quality: how far outputs are from those of the original in float32."""

from __future__ import annotations

from leptonc.report.section import Section


class Fidelity(Section, kw_only=True):
    """Outputs beside those of the original in float32, on the same text.

    Attributes:
        tokens: Tokens that a causal model was compared on.
        texts: Texts that an encoder was compared on.
        max_abs_diff: Largest difference of an output (logits, embeddings or scores).
        mean_abs_diff: Mean difference of outputs.
        kl_divergence: Mean over positions of KL(original || artifact), nats.
        cosine_min: Least cosine similarity of a text's outputs.
        cosine_mean: Mean cosine similarity of a text's outputs.
        top1_agreement: Fraction of positions, or of texts, with the same most likely token or label.
        score_error: Mean difference of scores; of scores without bounds, as a part of their mean magnitude.
        perplexity_reference: Of the text as the original reads it.
        perplexity: Of the text as the artifact reads it.
        text: The file's name of the text, or `built-in`.
        reference: The original, where it is not the model that the source names.
        sentence_transformers: How the original compares with sentence-transformers.
        executed: What ran in the engine's place, where the engine's GPU is not here.
    """

    tokens: int | None = None
    texts: int | None = None
    max_abs_diff: float | None = None
    mean_abs_diff: float | None = None
    kl_divergence: float | None = None
    cosine_min: float | None = None
    cosine_mean: float | None = None
    top1_agreement: float | None = None
    score_error: float | None = None
    perplexity_reference: float | None = None
    perplexity: float | None = None
    text: str | None = None
    reference: str | None = None
    sentence_transformers: str | None = None
    executed: str | None = None


class Judged(Section, kw_only=True):
    """A student on the texts that it does not learn from.

    Attributes:
        kl_divergence: Mean over tokens of KL(original || student), nats.
        error: Distance of its embeddings from the original's, where it has no logits.
        perplexity: Of the texts as the student reads them.
        perplexity_reference: Of the texts as the original reads them.
    """

    kl_divergence: float | None = None
    error: float | None = None
    perplexity: float | None = None
    perplexity_reference: float | None = None


class Recovery(Section, kw_only=True):
    """What healing did: a compressed model that learned from the original.

    Attributes:
        text: The calibration text's name.
        rank: Rank of what was added to each weight of a pruned model, or `full`.
        fitted_on: Windows of text that the weights were fitted to before learning began.
        steps: Steps of learning.
        seconds: Time that they took.
        learned_from: Windows of text that it learned from.
        held_out: Windows of text that it was judged on.
        before: What it was like before.
        after: What it is like after.
        losses: Step and loss of each look at the windows that were held out.
    """

    text: str
    rank: int | str | None = None
    fitted_on: int | None = None
    steps: int
    seconds: float
    learned_from: int
    held_out: int
    before: Judged
    after: Judged
    losses: list[tuple[int, float]] | None = None
