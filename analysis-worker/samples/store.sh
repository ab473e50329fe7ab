#!/bin/bash
source ./lib.sh
. "$HOME/other.sh"

LIMIT=8
export opened=0

# Opens a store.
open_store() {
  local path=$1
  mkdir -p "$path"
}

function close_store {
  opened=0
  open_store x
}
