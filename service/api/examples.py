"""The examples that OpenAPI shows. Tests send the requests and hold the answers to their models."""

from typing import Any

CLASSIFY_REQUESTS: dict[str, Any] = {
    "one text": {"value": {"model": "sentiment", "inputs": "a warm and funny film"}},
    "several, with the three likeliest labels": {
        "value": {"model": "intent", "inputs": ["where is my card?", "I was charged twice"], "top_k": 3}
    },
    "a tighter risk, errors per input, a deadline": {
        "value": {
            "model": "intent@production",
            "inputs": ["where is my card?"],
            "exit": {"risk": 0.005},
            "truncate": "error",
            "on_error": "item",
            "deadline_ms": 50,
        }
    },
}

_ENVELOPE = {
    "exit": {"risk_requested": 0.01, "risk_applied": 0.01},
    "usage": {"tokens": 7},
    "timing_ms": {"queue": 0.102, "compute": 0.952, "total": 1.81},
}

CLASSIFY_ANSWER: dict[str, Any] = {
    "model": "sentiment",
    "version": 1,
    "results": [{"label": "positive", "score": 0.9983, "exit": "embeddings", "depth": 0.0004}],
    **_ENVELOPE,
}

EMBED_REQUESTS: dict[str, Any] = {
    "one text": {"value": {"inputs": "a warm and funny film"}},
    "its first dimensions, as whole numbers": {
        "value": {"inputs": "a warm and funny film", "dimensions": 256, "encoding": "int8"}
    },
    "several, as base64 of little-endian float32": {
        "value": {"inputs": ["a warm and funny film", "where is my card?"], "encoding": "base64"}
    },
}

EMBED_ANSWER: dict[str, Any] = {
    "model": "minilm",
    "version": 1,
    "space_id": "all-minilm-l6-v2",
    "results": [{"embedding": [0.0312, -0.0907, 0.0514], "exit": "full", "depth": 1.0}],
    **_ENVELOPE,
    "exit": {"risk_requested": None, "risk_applied": None},
}

RANK_REQUESTS: dict[str, Any] = {
    "texts": {
        "value": {
            "model": "minilm",
            "query": "how long does a transfer take?",
            "passages": ["Transfers arrive within two days.", "The film was slow.", "Cards are sent by post."],
            "top_k": 2,
        }
    },
    "passages with ids, long ones in chunks, errors per passage": {
        "value": {
            "query": "how long does a transfer take?",
            "passages": [{"id": "faq-7", "text": "Transfers arrive within two days."}, {"text": "The film was slow."}],
            "return_text": True,
            "truncate": "chunk",
            "on_error": "item",
        }
    },
}

RANK_ANSWER: dict[str, Any] = {
    "model": "minilm",
    "version": 1,
    "results": [
        {"index": 0, "id": "faq-7", "score": 0.6912, "exit": "full", "depth": 1.0},
        {"index": 1, "score": 0.0385, "exit": "full", "depth": 1.0},
    ],
    **_ENVELOPE,
    "exit": {"risk_requested": None, "risk_applied": None},
}


def _problem(status: int, code: str, title: str, detail: str, *errors: tuple[str, str]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "type": f"urn:understudy:error:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }
    listed = [{"pointer": pointer, "detail": wrong} for pointer, wrong in errors]
    return document | ({"errors": listed} if listed else {})


PROBLEMS: dict[int, dict[str, Any]] = {
    400: _problem(400, "malformed", "Malformed request", "the body is not JSON: unexpected end of data"),
    401: _problem(401, "unauthorized", "Unauthorized", "an API key is needed"),
    403: _problem(403, "forbidden", "Forbidden", "this key may not ask for student 'intent'"),
    404: _problem(404, "unknown_model", "Unknown model", "no student is named 'intents'"),
    408: _problem(408, "body_timeout", "Request timeout", "the body did not come in time"),
    413: _problem(413, "too_large", "Request too large", "the body is larger than 8388608 bytes"),
    422: _problem(
        422, "invalid_input", "Invalid input", "the request has wrong fields", ("/inputs/1", "must be a text")
    ),
    429: _problem(429, "overloaded", "Overloaded", "too many items are waiting"),
    500: _problem(500, "internal", "Internal error", "The service failed on this request; its log says why."),
    503: _problem(503, "draining", "Draining", "the service is stopping"),
    504: _problem(504, "deadline_exceeded", "Deadline exceeded", "the deadline passed"),
}

MODELS_ANSWER: dict[str, Any] = {
    "object": "list",
    "data": [
        {
            "id": "sentiment",
            "object": "model",
            "created": 1767225600,
            "owned_by": "understudy",
            "task": "classify",
            "production": 2,
            "aliases": {"canary": 3, "production": 2},
            "versions": [{"version": 2, "labels": ["negative", "positive"], "backend": "onnxruntime"}],
            "refused": [],
        }
    ],
}
