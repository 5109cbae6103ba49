"""The job of each task, chosen by the recipe."""

from pathlib import Path

from models.recipe.classify import classify_recipe
from models.recipe.embed import EmbedRecipe
from models.recipe.parts import Recipe
from models.recipe.rank import RankRecipe
from models.refresh import job
from models.refresh.cache import StepCache
from models.refresh.embed_job import check_embed, refresh_embed
from models.refresh.progress import Reporter
from models.refresh.publishing import Published
from models.refresh.rank_job import check_rank, refresh_rank


def check(recipe: Recipe, cache: StepCache, reporter: Reporter) -> None:
    """Read the recipe's data and say what they hold, and see that its student fits its teacher.

    Raises: OfflineError: recipe, data or teacher are wrong.
    """
    if isinstance(recipe, EmbedRecipe):
        check_embed(recipe, cache, reporter)
    elif isinstance(recipe, RankRecipe):
        check_rank(recipe, cache, reporter)
    else:
        job.check(classify_recipe(recipe), reporter)


def refresh(recipe: Recipe, *, store: Path, cache: StepCache, seeds: int, reporter: Reporter) -> Published:
    """Make and publish a new version; see the job of the recipe's task."""
    if isinstance(recipe, EmbedRecipe):
        return refresh_embed(recipe, store=store, cache=cache, seeds=seeds, reporter=reporter)
    if isinstance(recipe, RankRecipe):
        return refresh_rank(recipe, store=store, cache=cache, seeds=seeds, reporter=reporter)
    return job.refresh(classify_recipe(recipe), store=store, cache=cache, seeds=seeds, reporter=reporter)
