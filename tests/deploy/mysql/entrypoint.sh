#!/bin/sh
# Makes the database, the user and the passwords that MYSQL_* name, once; then becomes the server.
set -eu
data=/var/lib/mysql
set -- --no-defaults --user=mysql "--datadir=$data" --socket=/run/mysqld/mysqld.sock --mysqlx=OFF --secure-file-priv=NULL \
    --innodb-buffer-pool-size=64M --performance-schema=OFF
if [ ! -d "$data/mysql" ]; then
    mysqld --no-defaults --user=mysql "--datadir=$data" --initialize-insecure
    cat >/tmp/first.sql <<SQL
ALTER USER root@localhost IDENTIFIED BY '$MYSQL_ROOT_PASSWORD';
CREATE DATABASE \`$MYSQL_DATABASE\`;
CREATE USER '$MYSQL_USER'@'%' IDENTIFIED BY '$MYSQL_PASSWORD';
GRANT ALL ON \`$MYSQL_DATABASE\`.* TO '$MYSQL_USER'@'%';
SQL
    chmod 644 /tmp/first.sql
    set -- "$@" --init-file=/tmp/first.sql
fi
exec mysqld "$@"
