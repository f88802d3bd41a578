# Runs one server for a test and cleans up when the test's process is gone, however it ended: its end of the pipe that is
# our standard input closes. Arguments: folder, log, command and its arguments. The server's process id is in `folder/pid`.
folder=$1 log=$2
shift 2
"$@" >"$log" 2>&1 </dev/null &
server=$!
echo "$server" >"$folder/pid"
cat >/dev/null
kill -9 "$server" 2>/dev/null
wait "$server" 2>/dev/null
rm -rf "$folder"
