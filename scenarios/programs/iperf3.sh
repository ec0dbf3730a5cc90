# iperf3 from the second device to the first one, which may be up a little later and serves one test.
if [ "$RANK" = 0 ]; then
    exec iperf3 --server --one-off --port "$MASTER_PORT"
fi
report="$TESTBED_OUT/iperf3.json"
for attempt in $(seq 20); do
    iperf3 --client "$MASTER_ADDR" --port "$MASTER_PORT" --time 4 --omit 1 --json >"$report"
    if ! grep -q '"error"' "$report"; then # with --json, the exit code is 0 where the server refuses, too
        exec cat "$report"
    fi
    sleep 0.5
done
exit 1
