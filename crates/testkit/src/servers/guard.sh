# Runs one server for a test and cleans up when the test's process is gone, however it ended: its end of the pipe that is
# our standard input closes. Arguments: folder, log, command and its arguments.
folder=$1 log=$2
shift 2
"$@" >"$log" 2>&1 </dev/null &
server=$!
cat >/dev/null
kill -9 "$server" 2>/dev/null
wait "$server" 2>/dev/null
rm -rf "$folder"
