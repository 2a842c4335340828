# Makes what is missing and leaves the rest; run again after rotating a key.
set -eu
mc alias set store http://minio:9000 "$ROOT_USER" "$ROOT_PASSWORD" >/dev/null
mc mb --ignore-existing store/flywheel store/flywheel-backups
mc admin policy create store services /setup/minio-services.json
mc admin policy create store backups /setup/minio-backups.json
mc admin user add store "$SERVICES_USER" "$SERVICES_PASSWORD"
mc admin user add store "$BACKUPS_USER" "$BACKUPS_PASSWORD"
# Attaching what is attached is an error to mc.
mc admin policy attach store services --user "$SERVICES_USER" || mc admin user info store "$SERVICES_USER" | grep -q services
mc admin policy attach store backups --user "$BACKUPS_USER" || mc admin user info store "$BACKUPS_USER" | grep -q backups
