"""`tallrec feedback`: what a service has kept about a user."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tallrec.console import say

feedback_app = typer.Typer(
    help="Likes and dislikes kept by 'tallrec serve'.", no_args_is_help=True, rich_markup_mode=None
)
UrlArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL", envvar="TALLREC_FEEDBACK", help="Such as sqlite:///runs/demo.feedback.db."
    ),
]
UserOption = Annotated[str, typer.Option(help="The user's id.")]


@feedback_app.command("export")
def feedback_export(url: UrlArgument, user: UserOption) -> None:
    """Print all that is stored about a user as JSON."""
    from tallrec.serve import check_installed

    check_installed()
    from tallrec.serve.feedback import FeedbackStore

    said = [one._asdict() for one in FeedbackStore(url).of_user(user)]
    print(json.dumps({"user": user, "feedback": said}, indent=2, ensure_ascii=False))


@feedback_app.command("delete")
def feedback_delete(
    url: UrlArgument,
    user: UserOption,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete all that is stored about a user."""
    from tallrec.serve import check_installed

    check_installed()
    from tallrec.serve.feedback import FeedbackStore

    store = FeedbackStore(url)
    if not yes:
        count = len(store.of_user(user))
        typer.confirm(f"Delete {count} likes and dislikes of user {user}?", abort=True)
    say(f"{store.delete_user(user)} likes and dislikes are deleted")
