-- Classes of volumes: what their QoS specs say is kept by whoever serves the volume. Figures are per GiB: 500 IOPS per TiB are 500/1024.
-- An administrator may change, hide or delete them. What there is of these names stays as it is.
INSERT OR IGNORE INTO volume_qos_specs (id, name, consumer, specs, created_at) VALUES
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000101', 'iops-500', 'both',
     '{"total_iops_sec_per_gb":"0.48828125","total_iops_sec_per_gb_min":"100"}', 0),
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000102', 'iops-1500', 'both',
     '{"total_iops_sec_per_gb":"1.46484375","total_iops_sec_per_gb_min":"100"}', 0),
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000103', 'iops-3000', 'both',
     '{"total_iops_sec_per_gb":"2.9296875","total_iops_sec_per_gb_min":"100"}', 0),
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000104', 'iops-7500', 'both',
     '{"total_iops_sec_per_gb":"7.32421875","total_iops_sec_per_gb_min":"100"}', 0),
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000105', 'iops-15000', 'both',
     '{"total_iops_sec_per_gb":"14.6484375","total_iops_sec_per_gb_min":"100"}', 0),
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000106', 'archive', 'both',
     '{"total_iops_sec":"100","total_bytes_sec":"52428800"}', 0);

INSERT OR IGNORE INTO volume_types (id, name, description, is_public, extra_specs, qos_id, created_at) VALUES
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000011', 'iops-500', '500 IOPS per TiB, and no less than 100', 1, '{}',
     '5f1c2a70-5d0f-4d0e-9b57-a110d0000101', 0),
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000012', 'iops-1500', '1,500 IOPS per TiB, and no less than 100', 1, '{}',
     '5f1c2a70-5d0f-4d0e-9b57-a110d0000102', 0),
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000013', 'iops-3000', '3,000 IOPS per TiB, and no less than 100', 1, '{}',
     '5f1c2a70-5d0f-4d0e-9b57-a110d0000103', 0),
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000014', 'iops-7500', '7,500 IOPS per TiB, and no less than 100', 1, '{}',
     '5f1c2a70-5d0f-4d0e-9b57-a110d0000104', 0),
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000015', 'iops-15000', '15,000 IOPS per TiB, and no less than 100', 1, '{}',
     '5f1c2a70-5d0f-4d0e-9b57-a110d0000105', 0),
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000016', 'archive', 'For what is seldom read: 100 IOPS, 50 MiB/s', 1, '{}',
     '5f1c2a70-5d0f-4d0e-9b57-a110d0000106', 0);

-- A QoS spec of such a name that was there already has another id.
UPDATE volume_types SET qos_id = (SELECT q.id FROM volume_qos_specs q WHERE q.name = volume_types.name)
    WHERE id IN ('5f1c2a70-5d0f-4d0e-9b57-a110d0000011', '5f1c2a70-5d0f-4d0e-9b57-a110d0000012',
                 '5f1c2a70-5d0f-4d0e-9b57-a110d0000013', '5f1c2a70-5d0f-4d0e-9b57-a110d0000014',
                 '5f1c2a70-5d0f-4d0e-9b57-a110d0000015', '5f1c2a70-5d0f-4d0e-9b57-a110d0000016');
