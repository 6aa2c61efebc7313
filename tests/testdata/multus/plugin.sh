#!/bin/sh
# A CNI plugin for tests: appends `<verb> <plugin> <interface> <configuration>` to `log` beside the name it is called by, fails if
# `fail-<plugin>-<verb>` is there, and answers ADD with `result-<plugin>`.
folder=$(dirname "$0")
name=$(basename "$0")
echo "$CNI_COMMAND $name $CNI_IFNAME $(cat)" >> "$folder/log"
if [ -e "$folder/fail-$name-$CNI_COMMAND" ]; then
    echo '{"code": 11, "msg": "no device", "details": "as the test wants"}'
    exit 1
fi
if [ "$CNI_COMMAND" = ADD ]; then cat "$folder/result-$name"; fi
