"""Items and what users said about them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes both tables."""
    op.create_table(
        "items",
        sa.Column("item", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("creator", sa.String()),
        sa.Column("domain", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("item", name="pk_items"),
    )
    op.create_table(
        "feedback",
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("item", sa.String(), nullable=False),
        sa.Column("liked", sa.Boolean(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "item", name="pk_feedback"),
        sa.ForeignKeyConstraint(["item"], ["items.item"], name="fk_feedback_item"),
    )


def downgrade() -> None:
    """Drops both tables."""
    op.drop_table("feedback")
    op.drop_table("items")
