#!/usr/bin/env python3
"""Makes the book of docs/ whole: mdBook calls it for each build, hack/docs.sh to check what was built.

    book.py                a preprocessor of mdBook: links to a README lead to its index, and those that leave docs/ to the repository
    book.py check FOLDER   fails if a link of the built book leads nowhere; links to other sites are not followed
"""

import html.parser
import json
import os
import posixpath
import re
import sys
import urllib.parse

LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCE = re.compile(r"^\s*```")


def main():
    arguments = sys.argv[1:]
    if arguments[:1] == ["supports"]:
        return
    if arguments[:1] == ["check"] and len(arguments) == 2:
        check(arguments[1])
    elif not arguments:
        preprocess()
    else:
        sys.exit(__doc__)


def preprocess():
    context, book = json.load(sys.stdin)
    repository = context["config"]["output"]["html"]["git-repository-url"]
    for chapter in chapters(book):
        # The path of the file, also where mdBook makes an index of a README.
        path = chapter.get("source_path") or chapter.get("path")
        if path:
            chapter["content"] = rewrite(chapter["content"], posixpath.dirname(path), repository)
    json.dump(book, sys.stdout)


def chapters(part):
    """All chapters, however deep."""
    if isinstance(part, list):
        for item in part:
            yield from chapters(item)
    elif isinstance(part, dict):
        if "Chapter" in part:
            yield part["Chapter"]
        for item in part.values():
            yield from chapters(item)


def rewrite(text, folder, repository):
    lines, code = [], False
    for line in text.split("\n"):
        code ^= bool(FENCE.match(line))
        lines.append(line if code else LINK.sub(lambda link: f"]({target(link[1], folder, repository)})", line))
    return "\n".join(lines)


def target(link, folder, repository):
    parts = urllib.parse.urlsplit(link)
    if parts.scheme or not parts.path:
        return link
    path = posixpath.normpath(posixpath.join("docs", folder, parts.path))
    if path.startswith("docs/"):
        # mdBook makes an index of each README, but leaves the links to it as they are.
        return re.sub(r"(^|/)README\.md(?=$|#)", r"\1index.md", link)
    # mdBook runs this in docs/.
    kind = "tree" if os.path.isdir(os.path.join("..", path)) else "blob"
    return f"{repository}/{kind}/main/{path}" + (f"#{parts.fragment}" if parts.fragment else "")


class Page(html.parser.HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        with open(path, encoding="utf-8") as file:
            self.feed(file.read())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if value and name == "id" or tag == "a" and name == "name":
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.links.append(value)


def check(folder):
    pages = {}
    for directory, _, files in os.walk(folder):
        for name in files:
            if name.endswith(".html"):
                path = os.path.join(directory, name)
                pages[os.path.realpath(path)] = Page(path)
    if not pages:
        sys.exit(f"there is no page in {folder}")
    checked, broken = 0, []
    for path, page in sorted(pages.items()):
        # Made of the other pages.
        if os.path.basename(path) in ("print.html", "toc.html"):
            continue
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            checked += 1
            found = os.path.dirname(path) if parts.path else path
            # The page of an unknown address is shown at any address, so that its links begin at the root.
            if parts.path.startswith("/"):
                found = os.path.realpath(folder)
            found = os.path.realpath(os.path.join(found, urllib.parse.unquote(parts.path.lstrip("/"))))
            if os.path.isdir(found):
                found = os.path.join(found, "index.html")
            if not os.path.exists(found):
                broken.append(f"{path}: {link}: no such file")
            elif parts.fragment and found in pages and urllib.parse.unquote(parts.fragment) not in pages[found].anchors:
                broken.append(f"{path}: {link}: no such heading")
    if broken:
        sys.exit("\n".join(broken))
    print(f"{len(pages)} pages, {checked} links")


if __name__ == "__main__":
    main()
