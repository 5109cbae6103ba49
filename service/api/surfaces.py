"""Every protocol that is spoken beside the native one."""

from fastapi import FastAPI

from service.api.cohere import add_cohere_routes
from service.api.conversation import DirectRoute
from service.api.kserve import add_kserve_routes
from service.api.openai import add_openai_routes
from service.api.tei import add_tei_routes


def add_surfaces(app: FastAPI, *, tei_at_root: bool) -> dict[str, DirectRoute]:
    """Register the routes of every surface.

    Args:
        app: where.
        tei_at_root: text-embeddings-inference's routes without their prefix too; paths that are taken stay so.
    Returns: what answers each path directly.
    """
    direct = add_openai_routes(app) | add_cohere_routes(app) | add_tei_routes(app, root=tei_at_root)
    add_kserve_routes(app)
    return direct
