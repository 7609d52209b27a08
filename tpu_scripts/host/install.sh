#!/usr/bin/env bash
# On a host: install.sh PYTHON_VERSION. The virtual environment in ~/rdjax-venv, and ~/rdjax in it.

set -euo pipefail
version=$1
venv=$HOME/rdjax-venv

there=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
if [[ $there != "$version" ]]; then
  rm -rf "$venv"
  # The TPU images' own Python may be older than rdjax needs; uv brings the wanted one without root. The variable is for
  # images whose Python wants packages from apt alone.
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --seed --python "$version" "$venv"
fi
cd "$HOME/rdjax"
"$venv/bin/python" -m pip install --quiet -e '.[tpu]'
