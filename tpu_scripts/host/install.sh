#!/usr/bin/env bash
# Runs on a host: install.sh PYTHON_VERSION. Installs ~/rdjax into the virtual environment ~/rdjax-venv.

set -euo pipefail
version=$1
venv=$HOME/rdjax-venv

current=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
if [[ $current != "$version" ]]; then
  rm -rf "$venv"
  # The Python of the TPU image may be too old for rdjax; uv installs another one without root. The variable is for images
  # whose Python accepts only packages from apt.
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --seed --python "$version" "$venv"
fi
cd "$HOME/rdjax"
"$venv/bin/python" -m pip install --quiet -e '.[tpu]'
