"""What schemathesis does not know by itself: a tar archive is sent as the bytes it is."""

import schemathesis

schemathesis.serializer.alias("application/x-tar", "application/octet-stream")
