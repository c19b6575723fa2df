"""``cowdb delete``: remove keys, a range of them, or a tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cowdb.cli.opening import add_path, add_timeout, add_tree, reading, tree_of, writing
from cowdb.cli.output import FINDINGS, FINE, USAGE, CommandError, counted
from cowdb.cli.ranges import add_range, given_key, mix, range_of

if TYPE_CHECKING:
    import argparse

    from cowdb.cli.output import Output

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
Removes the given keys, or all keys of a range, or a whole tree, in one durable
transaction. A key that is not there gives exit code 1; the others are removed
nevertheless. The file becomes smaller where its end is free then.
"""

EXAMPLES: Final = (
    ("cowdb delete app.cowdb motto", "one key of the main tree"),
    ("cowdb delete app.cowdb --tree log --stop 2024 --dry-run", "how many keys before 2024 there are"),
    ("cowdb delete app.cowdb --prefix session:", "all keys that begin so"),
    ("cowdb delete app.cowdb --tree log --drop", "the tree itself, with all that is in it"),
)


_EMPTY: Final = {
    "prefix": "means every key; say --all",
    "start": "means from the first key on; leave it out, or say --all",
    "stop": "means no key at all; leave it out, or say --all",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("keys", metavar="KEY", nargs="*", help="the keys")
    add_tree(parser)
    add_range(parser, "or a range of keys")
    parser.add_argument("--all", action="store_true", help="every key of the tree; the tree stays, empty")
    parser.add_argument("--drop", action="store_true", help="the named tree itself, with every key")
    parser.add_argument("--dry-run", "-n", action="store_true", help="only say how many keys there are to remove")
    add_timeout(parser)
    mix(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    ranged = any(bound is not None for bound in (args.prefix, args.start, args.stop))
    said = sum((bool(args.keys), ranged, args.all, args.drop))
    if said != 1:
        what = "KEYs, or a range, or --all, or --drop"
        raise CommandError(f"say what to remove: {what}" + ("; one of them, not more" if said else ""), USAGE)
    if args.drop and args.tree is None:
        raise CommandError("the main tree cannot be dropped; --all empties it", USAGE)
    _refuse_empty_bounds(args)
    keys = [given_key(args, text) for text in args.keys]
    low, high = range_of(args)
    # Looking first: no writer lock is taken, and nothing is made, where the tree is not there.
    with reading(args.file, args.timeout) as state:
        tree = tree_of(state, args.tree)
        removed = sum(tree.get(key) is not None for key in set(keys)) if keys else tree.count(low, high)
    missing: list[bytes] = []
    if not args.dry_run:
        with writing(args.file, args.timeout) as db, db.write() as txn:
            target = txn if args.tree is None else txn.tree(args.tree)
            if args.drop:
                removed = len(target)
                txn.drop(args.tree)
            elif keys:
                missing = [key for key in dict.fromkeys(keys) if not target.delete(key)]
                removed = len(set(keys)) - len(missing)
            else:
                removed = target.delete_range(low, high)
    if out.machine:
        out.document({"tree": args.tree, "removed": removed, "missing": missing, "dry_run": args.dry_run})
    else:
        out.line(f"{counted(removed, 'entry')} {'would be removed' if args.dry_run else 'removed'}")
        for key in missing:
            out.note(f"there is no key {out.key(key, 200)}")
    return FINDINGS if missing else FINE


def _refuse_empty_bounds(args: argparse.Namespace) -> None:
    """A bound that is empty is a variable of the shell that was not set: nobody shall lose a tree by that."""
    for name, meaning in _EMPTY.items():
        bound = getattr(args, name)
        if bound is not None and not given_key(args, bound):
            raise CommandError(f"an empty --{name} {meaning}", USAGE)
