#!/bin/sh
# The hourly backup of the receipts; keeps every archive on the same volume.
cd /srv/shop/data || exit 1
mkdir -p backup
number=1
while :; do
    echo "backup $number started"
    if tar -cf "backup/receipts-$number.tar" receipts index.db; then
        echo "backup $number done: $(stat -c %s "backup/receipts-$number.tar") bytes"
    else
        echo "backup $number failed with status $?" >&2
    fi
    number=$((number + 1))
    sleep 2
done
