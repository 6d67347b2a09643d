"""Renew the certificates of gateways; used by the deployment `renew-certificates/daily` in `prefect.yaml`."""

from prefect_dstack.flows.renew_certificates import renew_certificates

if __name__ == "__main__":
    renew_certificates.serve(name="daily", cron="17 4 * * *")
