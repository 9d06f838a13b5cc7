# Sourced by ./quickstart, ./test and .ci/run, which set `root` to this repository.
#
#   environment [PIP ARGUMENT]...
#
# makes the virtual environment $VENV (.venv) and installs SparseBench into it, with the tested versions and whatever the
# arguments name besides. Done already, it does nothing. `venv` is its absolute path. PYTHON names the interpreter to use.

case ${VENV:=.venv} in
  /*) venv=$VENV ;;
  *) venv=$root/$VENV ;;
esac

suitable() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

interpreter() {
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if suitable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "SparseBench needs Python 3.11 or later. Set PYTHON to one: PYTHON=/path/to/python3.11 $0" >&2
  exit 2
}

environment() {
  stamp=$venv/installed-$(echo "$*" | cksum | cut -d ' ' -f 1)
  wanted=$(cd "$root" && cksum pyproject.toml constraints.txt)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    return
  fi
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(interpreter)
    if ! "$python" -m venv "$venv"; then
      echo "$python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
      exit 2
    fi
  fi
  echo "Installing SparseBench into $venv; the first time this takes some minutes." >&2
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check 'pip>=25.1'
  (cd "$root" && "$venv/bin/python" -m pip install -qq --constraint constraints.txt --editable . "$@")
  echo "$wanted" >"$stamp"
}
