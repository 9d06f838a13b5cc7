#!/bin/sh
# Verify the results, folders or packed files, that a change adds or alters, and say what they hold: Markdown, for a pull request.
#
#   scripts/submission.sh BASE CHANGE
#
# BASE and CHANGE are two checkouts of this repository; only files of CHANGE/leaderboard/results are read. Leaves with 1
# where a folder does not verify or was taken away, and with 2 where its name is no plain one.
set -eu
base=$1/leaderboard/results
change=$2/leaderboard/results
code=0

for place in "$base"/*; do
  name=$(basename "$place")
  if [ -e "$place" ] && [ ! -e "$change/$name" ]; then
    printf '### %s\n\nTaken away.\n\n' "$name"
    code=1
  fi
done

for place in "$change"/*; do
  [ -e "$place" ] || continue
  name=$(basename "$place")
  case $name in
    .* | *[!A-Za-z0-9._-]*) echo "a folder's name holds letters, digits, dots, dashes and underscores only" && exit 2 ;;
  esac
  if [ -e "$base/$name" ] && diff -rq "$base/$name" "$place" > /dev/null; then continue; fi
  printf '### %s\n\n' "$name"
  if said=$(sparsebench verify "$place" 2>&1); then verdict="It verifies."; else verdict="**It does not verify.**" code=1; fi
  printf '%s\n\n```text\n%s\n```\n\n' "$verdict" "$(printf '%s' "$said" | tr -d '`' | head -c 8000)"
  if [ -e "$base/$name" ]; then
    printf '#### Against what is published\n\n'
    sparsebench compare "$base/$name" "$place" --format md || true
  else
    sparsebench report "$place" --format md || true
  fi
  printf '\n'
done
exit $code
