#!/bin/sh
# Asks the partner's feed every two seconds whether it is there.
while :; do
    curl --silent --show-error --output /dev/null --max-time 5 --write-out 'GET %{url} %{http_code} %{time_total}s\n' \
        'http://api.ratefeed.example/latest?base=EUR' 2>&1
    sleep 2
done
